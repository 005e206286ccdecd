//! Between the values that the program works with and those that nodes send each other.

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_proto::peer::v1 as api;

/// As nodes send it.
pub fn digest_to_message(digest: &Digest) -> api::Digest {
    api::Digest {
        function: u32::from(digest.function().number()),
        hash: Bytes::copy_from_slice(digest.hash()),
        size_bytes: digest.size_bytes(),
    }
}

/// What a node has sent; `None` when it is no digest.
pub fn digest_from_message(digest: &api::Digest) -> Option<Digest> {
    let function = u8::try_from(digest.function).ok().and_then(DigestFunction::from_number)?;
    // Clients count in signed numbers; nothing larger ever came in.
    let size_bytes = i64::try_from(digest.size_bytes).ok()?;
    Digest::from_raw(function, &digest.hash, size_bytes.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digest_is_read_as_it_was_sent_and_nothing_else_is() {
        for function in DigestFunction::ALL {
            let digest = Digest::of(*function, b"casbah");
            let message = digest_to_message(&digest);
            assert_eq!(digest_from_message(&message), Some(digest));
            let short = api::Digest { hash: message.hash.slice(1..), ..message.clone() };
            let unknown = api::Digest { function: 200, ..message.clone() };
            let huge = api::Digest { size_bytes: u64::MAX, ..message };
            for wrong in [short, unknown, huge, api::Digest::default()] {
                assert_eq!(digest_from_message(&wrong), None);
            }
        }
    }
}
