//! What a node can say of a blob.

/// Whether a node has a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It has it.
    Here,
    /// It has not, and that is a fact: it never had it, or has let it go by its own will.
    Absent,
    /// It has not; but its copy may have been damaged. It cannot say whether the blob was ever stored.
    Unsure,
}
