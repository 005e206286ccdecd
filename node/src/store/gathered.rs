//! Bytes of uploads that wait until there are enough of them to be worth a job, bounded over all uploads together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::limits::{GATHERED_BYTES, PIECE_BYTES, UPLOAD_PIECES};

/// The bytes that all uploads of a store have gathered.
pub type GatheredTotal = Arc<AtomicUsize>;

/// The bytes that one upload has gathered.
pub struct Gathered {
    total: GatheredTotal,
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl Gathered {
    /// Nothing yet.
    pub fn new(total: &GatheredTotal) -> Gathered {
        Gathered { total: Arc::clone(total), pieces: Vec::new(), bytes: 0 }
    }

    /// Adds the next bytes.
    pub fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.bytes += data.len();
        self.total.fetch_add(data.len(), Ordering::Relaxed);
        self.pieces.push(data);
    }

    /// Whether it is time to give them to a job: there are enough of them, or too many over all uploads, as when many
    /// clients have stalled.
    pub fn is_due(&self) -> bool {
        let enough = self.bytes >= PIECE_BYTES || self.pieces.len() >= UPLOAD_PIECES;
        enough || self.bytes > 0 && self.total.load(Ordering::Relaxed) > GATHERED_BYTES
    }

    /// Makes one piece of many small ones, whose bookkeeping would outweigh them.
    pub fn join_many(&mut self) {
        if self.pieces.len() >= UPLOAD_PIECES {
            self.pieces = vec![Bytes::from(self.pieces.concat())];
        }
    }

    /// All of them, in their order.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.total.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
        std::mem::take(&mut self.pieces)
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(count: usize) -> Bytes {
        Bytes::from(vec![1; count])
    }

    #[test]
    fn a_little_waits_while_there_is_little_elsewhere() {
        let total = GatheredTotal::default();
        let mut one = Gathered::new(&total);
        one.push(bytes(10));
        assert!(!one.is_due());
        one.push(bytes(PIECE_BYTES));
        assert!(one.is_due());
        assert_eq!(one.take().len(), 2);
        assert!(!one.is_due());
    }

    #[test]
    fn a_little_is_due_when_there_is_much_elsewhere_until_that_is_gone() {
        let total = GatheredTotal::default();
        let mut one = Gathered::new(&total);
        one.push(bytes(10));
        let mut much = Gathered::new(&total);
        much.push(bytes(GATHERED_BYTES));
        assert!(one.is_due());
        drop(much);
        assert!(!one.is_due());
        drop(one);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }
}
