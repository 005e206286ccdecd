//! The blob store of one node.
