//! Finished packs go to the store, a few at a time; what is durable is noted in the run's resume log, so that an
//! interrupted run does not send it again. What the log says is believed only as far as its hashes hold.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::RunStats;
use super::blocks::Places;
use crate::backend::create_or_recognise;
use crate::blob::Location;
use crate::hex::Hex;
use crate::keys::BlobId;
use crate::pack::{FinishedPack, PackId, object_key};
use crate::seal::ContentKeyId;
use crate::{Store, StoreError};

/// One line of a resume log: a pack that is durable, and what it holds.
#[derive(Debug, Serialize, Deserialize)]
struct ShippedPack {
    /// The store's own id: a pack that another store holds does not count.
    store: Hex<16>,
    pack: PackId,
    key: ContentKeyId,
    /// Its blocks; not its nodes: id, offset, length, how many patches deep.
    blobs: Vec<(BlobId, u32, u32, u8)>,
}

impl ShippedPack {
    /// JSON, a space and a hash of it: a bit that this disk lost must not send a later point to a wrong place.
    fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a pack's contents are valid JSON");
        let hash = blake3::hash(&line).to_hex();
        line.push(b' ');
        line.extend_from_slice(hash.as_bytes());
        line.push(b'\n');
        line
    }
    fn from_line(line: &[u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n")?;
        let (json, hash) = line.split_at(line.iter().rposition(|b| *b == b' ')?);
        if blake3::hash(json).to_hex().as_bytes() != &hash[1..] {
            return None;
        }
        serde_json::from_slice(json).ok()
    }
}

pub(super) enum Upload {
    /// A pack, and how many patches deep each of its blocks is.
    Pack(FinishedPack, Vec<u8>),
    Barrier(oneshot::Sender<()>),
}

/// Uploads packs, a few at a time; each is noted in the resume log once it is durable.
pub(super) async fn upload_packs(
    store: Store,
    mut queue: mpsc::Receiver<Upload>,
    at_once: usize,
    mut log: File,
    log_path: PathBuf,
    stats: Arc<RunStats>,
) -> Result<(), StoreError> {
    let mut running: JoinSet<Result<ShippedPack, StoreError>> = JoinSet::new();
    let mut finish_one =
        |done: Option<Result<Result<ShippedPack, StoreError>, tokio::task::JoinError>>| match done {
            None => Ok(false),
            Some(Err(_)) => Err(StoreError::Cancelled),
            Some(Ok(shipped)) => {
                let line = shipped?.to_line();
                log.write_all(&line).and_then(|()| log.sync_data()).map_err(|source| {
                    StoreError::Destination { what: log_path.display().to_string(), source }
                })?;
                Ok(true)
            }
        };
    let result = loop {
        // A pack is noted as soon as it is durable, not when the next one is ready: a process that is killed in between
        // must not send it again.
        let upload = tokio::select! {
            Some(done) = running.join_next(), if !running.is_empty() => match finish_one(Some(done)) {
                Ok(_) => continue,
                Err(error) => break Err(error),
            },
            upload = queue.recv(), if running.len() < at_once.max(1) => upload,
        };
        match upload {
            None => break Ok(()),
            Some(Upload::Pack(pack, depths)) => {
                let (store, stats) = (store.clone(), stats.clone());
                running.spawn(upload_pack(store, pack, depths, stats));
            }
            Some(Upload::Barrier(done)) => {
                let mut all = Ok(true);
                while matches!(all, Ok(true)) {
                    all = finish_one(running.join_next().await);
                }
                if let Err(error) = all {
                    break Err(error);
                }
                let _ = done.send(());
            }
        }
    };
    // Whoever waits to hand over a pack is told at once; what is under way and arrives still counts for the next try.
    queue.close();
    let mut result = result;
    while let Some(done) = running.join_next().await {
        let noted = finish_one(Some(done)).map(|_| ());
        result = result.and(noted);
    }
    result
}

async fn upload_pack(
    store: Store,
    pack: FinishedPack,
    depths: Vec<u8>,
    stats: Arc<RunStats>,
) -> Result<ShippedPack, StoreError> {
    let (key, bytes) = (object_key(&pack.id), pack.bytes.len() as u64);
    if create_or_recognise(&*store.backend, &key, pack.bytes).await?.is_none() {
        return Err(StoreError::Conflict { key });
    }
    stats.shipped_bytes.fetch_add(bytes, Ordering::Relaxed);
    stats.packs.fetch_add(1, Ordering::Relaxed);
    // Blocks only: a node names the packs of its blocks, and one of those may never have arrived.
    let blocks = pack.index.iter().filter(|entry| entry.is_block());
    let blobs = blocks.zip(depths).map(|(e, depth)| (e.id, e.offset, e.len, depth)).collect();
    Ok(ShippedPack { store: store.format().store, pack: pack.id, key: pack.key, blobs })
}

pub(super) fn open_resume_log(path: &Path, limit: usize, store: &Hex<16>) -> std::io::Result<(Places, File)> {
    let mut known = Places::new();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut whole_bytes = 0;
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        // The last line may have been cut by a crash: that pack is sent again.
        let Some(shipped) = ShippedPack::from_line(&line) else { break };
        whole_bytes += line.len() as u64;
        for (id, offset, len, depth) in shipped.blobs.into_iter().filter(|_| shipped.store == *store) {
            if known.len() < limit {
                known.insert(id, (Location { pack: shipped.pack, key: shipped.key, offset, len }, depth));
            }
        }
        line.clear();
    }
    file.set_len(whole_bytes)?;
    file.flush()?;
    Ok((known, file))
}
