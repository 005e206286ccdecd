//! Snapshots: all assets and the cluster's state as of one entry, in the form in which they go from node to node.
//!
//! A leader keeps none on disk. Its snapshot is a view of its state machine, which it reads while it sends, and which later
//! entries do not change. A node that receives one gathers it in a file and installs it once it is whole.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use casbah_cluster::consensus::{SnapshotMeta, SnapshotPart, SnapshotRecord};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use redb::{ReadTransaction, ReadableTable as _};
use tokio::sync::mpsc;

use crate::index::raft::error::GroupError;
use crate::index::raft::state::CLUSTER;
use crate::index::tables::{RECORDS, USES};

/// The file that a snapshot is received in; what a crash leaves of it is removed at the next start.
pub(super) const INCOMING: &str = "raft-snapshot.incoming";

/// What begins each stream.
const MAGIC: &[u8; 8] = b"casbahRS";

/// The version of the stream; the parts have versions of their own.
const VERSION: u32 = 1;

const HEADER_BYTES: usize = 12;

/// Length and checksum of a part.
const FRAME_BYTES: usize = 8;

/// Records of one part: enough to share the cost of a message, few enough to hold in memory on both sides.
const PART_BYTES: usize = 256 << 10;

/// The longest part that is taken in: a part of [`PART_BYTES`] and the longest record.
const PART_BYTES_MAX: usize = 4 << 20;

/// Parts that are read ahead of the network.
const AHEAD_MAX: usize = 2;

/// A snapshot that can be sent or installed.
pub(super) enum SnapshotData {
    /// A view of this node's own state machine.
    View(ReadTransaction),
    /// Received whole, in this file, which is removed with it.
    Received(Received),
}

/// A received snapshot on disk.
pub(super) struct Received {
    path: PathBuf,
}

// === impl Received ===

impl Drop for Received {
    fn drop(&mut self) {
        // What cannot be removed now is removed at the next start, or written over by the next one.
        drop(std::fs::remove_file(&self.path));
    }
}

// === impl SnapshotData ===

impl SnapshotData {
    /// Its bytes, to be sent.
    pub(super) fn into_stream(self) -> BoxStream<'static, io::Result<Bytes>> {
        let (pieces, ahead) = mpsc::channel(AHEAD_MAX);
        let header = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
        tokio::task::spawn_blocking(move || {
            let mut send = |part: &SnapshotPart| -> io::Result<()> {
                let piece = frame(part)?;
                pieces.blocking_send(Ok(piece)).map_err(|_| io::Error::other("the receiver is gone"))
            };
            if let Err(error) = self.visit(&mut send) {
                // To whoever still listens: the stream does not end well.
                drop(pieces.blocking_send(Err(error)));
            }
        });
        let parts = futures_util::stream::unfold(ahead, |mut ahead| async move { Some((ahead.recv().await?, ahead)) });
        futures_util::stream::once(std::future::ready(Ok(Bytes::from(header)))).chain(parts).boxed()
    }

    /// Hands over all parts, in order. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be read or is not whole, and when `take` fails.
    pub(super) fn visit(self, take: &mut dyn FnMut(&SnapshotPart) -> io::Result<()>) -> io::Result<()> {
        match self {
            SnapshotData::View(view) => visit_view(&view, take),
            SnapshotData::Received(received) => visit_file(&received.path, take),
        }
    }
}

fn visit_view(view: &ReadTransaction, take: &mut dyn FnMut(&SnapshotPart) -> io::Result<()>) -> io::Result<()> {
    let other = |error: redb::Error| io::Error::other(error);
    let cluster = view.open_table(CLUSTER).map_err(|error| other(error.into()))?;
    let state = cluster.get("state").map_err(|error| other(error.into()))?.map(|state| state.value().to_vec());
    take(&SnapshotPart::Cluster { state })?;
    let uses = view.open_table(USES).map_err(|error| other(error.into()))?;
    let records = view.open_table(RECORDS).map_err(|error| other(error.into()))?;
    let (mut part, mut bytes, mut count) = (Vec::new(), 0, 0);
    // In the order of their use, which is a part of the state.
    for used in uses.iter().map_err(|error| other(error.into()))? {
        let key = used.map_err(|error| other(error.into()))?.1;
        let entry = records.get(key.value()).map_err(|error| other(error.into()))?;
        let Some(entry) = entry else {
            return Err(io::Error::other("the order of use names an asset that is not there"));
        };
        let (_, ends_at, record) = entry.value();
        bytes += key.value().len() + record.len();
        part.push(SnapshotRecord { key: key.value().to_vec(), record: record.to_vec(), ends_at });
        count += 1;
        if bytes >= PART_BYTES {
            take(&SnapshotPart::Assets { records: std::mem::take(&mut part) })?;
            bytes = 0;
        }
    }
    if !part.is_empty() {
        take(&SnapshotPart::Assets { records: part })?;
    }
    take(&SnapshotPart::End { assets: count })
}

fn visit_file(path: &Path, take: &mut dyn FnMut(&SnapshotPart) -> io::Result<()>) -> io::Result<()> {
    let mut file = BufReader::with_capacity(PART_BYTES, File::open(path)?);
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header)?;
    check_header(&header)?;
    let mut count = 0;
    loop {
        let mut frame = [0; FRAME_BYTES];
        file.read_exact(&mut frame)?;
        let (length, checksum) = split(frame);
        if length > PART_BYTES_MAX {
            return Err(broken("a part is too long"));
        }
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes)?;
        if crc32c::crc32c(&bytes) != checksum {
            return Err(broken("a part is damaged"));
        }
        let part = SnapshotPart::decode(&bytes).map_err(io::Error::other)?;
        if let SnapshotPart::Assets { records } = &part {
            count += records.len() as u64;
        }
        if let SnapshotPart::End { assets } = part {
            let is_whole = assets == count && file.read(&mut [0])? == 0;
            return if is_whole { take(&part) } else { Err(broken("it does not end where it should")) };
        }
        take(&part)?;
    }
}

fn check_header(header: &[u8; HEADER_BYTES]) -> io::Result<()> {
    let expected = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    if header.as_slice() == expected { Ok(()) } else { Err(broken("it begins with something else")) }
}

fn split(frame: [u8; FRAME_BYTES]) -> (usize, u32) {
    let [a, b, c, d, e, f, g, h] = frame;
    let length = u32::from_le_bytes([a, b, c, d]);
    (usize::try_from(length).unwrap_or(usize::MAX), u32::from_le_bytes([e, f, g, h]))
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Length, checksum, part.
fn frame(part: &SnapshotPart) -> io::Result<Bytes> {
    let bytes = part.encode().map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    Ok(Bytes::from([&length.to_le_bytes()[..], &crc32c::crc32c(&bytes).to_le_bytes(), &bytes].concat()))
}

/// Takes in a snapshot that another node sends, and checks that it is whole.
///
/// # Errors
/// [`GroupError::Snapshot`] when it is cut off or damaged; others when the disk fails. Nothing of it is left then.
///
/// # Cancel safety
/// Dropped, nothing of it is left.
pub(super) async fn receive<E>(
    directory: &Path,
    data: impl Stream<Item = Result<Bytes, E>> + Send,
) -> Result<SnapshotData, GroupError> {
    let path = directory.join(INCOMING);
    let mut file = File::create(&path)?;
    let received = Received { path };
    let mut data = std::pin::pin!(data);
    while let Some(piece) = data.next().await {
        let piece = piece.map_err(|_| GroupError::Snapshot)?;
        let write = move || file.write_all(&piece).map(|()| file);
        file = tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
    }
    drop(file);
    let path = received.path.clone();
    let check = move || visit_file(&path, &mut |_| Ok(()));
    let checked = tokio::task::spawn_blocking(check).await.map_err(io::Error::other)?;
    match checked {
        Ok(()) => Ok(SnapshotData::Received(received)),
        Err(error) => {
            tracing::warn!(%error, "a snapshot that was received is not whole");
            Err(GroupError::Snapshot)
        }
    }
}

/// Removes what a crash has left.
pub(super) fn clean(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(INCOMING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A snapshot of openraft's.
pub(super) type Snapshot =
    openraft::Snapshot<casbah_cluster::consensus::LeaderId, u64, openraft::EmptyNode, SnapshotData>;

/// The same from its parts.
pub(super) fn snapshot(meta: SnapshotMeta, data: SnapshotData) -> Snapshot {
    Snapshot { meta, snapshot: data }
}
