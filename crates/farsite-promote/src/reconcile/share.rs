//! One volume's files in the folder of a file back end: which is the active one, and all below it. Names and headers come in; a chain
//! goes out, or why its contents cannot be read as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind::UnexpectedEof;
use std::path::{Path, PathBuf};

use farsite_sources::rbd::PoolImage;

use super::qcow2;
use super::volumes::{Snapshot, Volume};

/// A chain of overlays that is longer is not meant.
const CHAIN: usize = 64;

/// A folder of a file back end.
pub(super) struct Share {
    folder: PathBuf,
    pub(super) files: BTreeMap<String, u64>,
}

/// One volume's files.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) has_info: bool,
    /// Overlays by the id of the snapshot that they were made for.
    pub(super) snapshots: BTreeMap<String, String>,
    /// From the active one down.
    pub(super) files: BTreeSet<String>,
    /// The active file's, where it has one.
    pub(super) header: Option<qcow2::Header>,
    pub(super) active_bytes: u64,
    /// Why its contents cannot be read as a whole.
    pub(super) broken: Option<String>,
}

impl Chain {
    /// Snapshots of an image are within it.
    pub(super) fn of_image(image: Option<&PoolImage>, snapshot: &Snapshot) -> Self {
        let mut chain = Self::default();
        let name = format!("snapshot-{}", snapshot.id);
        if image.is_some_and(|image| image.snapshots.contains(&name)) {
            chain.files.insert(name.clone());
            chain.snapshots.insert(snapshot.id.clone(), name);
        }
        chain
    }

    /// Why a snapshot cannot be read from here.
    pub(super) fn lacks(&self, snapshot: &Snapshot) -> Option<String> {
        let volume = &snapshot.volume;
        match self.snapshots.get(&snapshot.id) {
            None => Some(format!("its volume {volume} holds nothing of it here")),
            Some(file) if !self.files.contains(file) => {
                Some(format!("its file {file} is not in the chain of volume {volume}"))
            }
            Some(_) => None,
        }
    }
}

impl Share {
    pub(super) fn open(folder: &Path) -> std::io::Result<Self> {
        let files = match super::files(folder) {
            // A point without volumes leaves no folder.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            files => files?,
        };
        Ok(Self { folder: folder.to_owned(), files })
    }

    pub(super) fn chain(&self, volume: &Volume) -> std::io::Result<Chain> {
        let (mut chain, base) = (Chain::default(), format!("volume-{}", volume.name_id));
        let mut active = base.clone();
        let info = format!("{base}.info");
        if self.files.contains_key(&info) {
            chain.has_info = true;
            let text = std::fs::read(self.folder.join(&info))?;
            let Ok(mut said) = serde_json::from_slice::<BTreeMap<String, String>>(&text) else {
                chain.broken = Some(format!("{info} cannot be read"));
                return Ok(chain);
            };
            active = said.remove("active").unwrap_or(active);
            chain.snapshots = said;
        } else if let Some(overlay) =
            self.files.keys().find(|name| name.strip_prefix(&base).is_some_and(|rest| rest.starts_with('.')))
        {
            // Without the record the driver would take the base for the volume: its state at its first snapshot.
            chain.broken = Some(format!(
                "{info} is missing beside {overlay}: which of its files is the newest is not known"
            ));
            return Ok(chain);
        }
        let mut name = active;
        for depth in 0..CHAIN {
            let Some(bytes) = self.files.get(&name).filter(|_| !name.contains('/')) else {
                chain.broken = Some(match depth {
                    0 => format!("its file {name} is not here"),
                    _ => format!("the file {name}, on which its newest one stands, is not here"),
                });
                return Ok(chain);
            };
            chain.files.insert(name.clone());
            // Without a record there is one file, and what a guest wrote into it is not asked.
            let is_container = chain.has_info || volume.format.as_deref() == Some("qcow2");
            let header = match is_container.then(|| qcow2::header(&self.folder.join(&name))) {
                Some(Err(error)) if error.kind() == UnexpectedEof => {
                    chain.broken = Some(format!("{name} ends within its header"));
                    return Ok(chain);
                }
                header => header.transpose()?.flatten(),
            };
            if depth == 0 {
                chain.active_bytes = *bytes;
                chain.header.clone_from(&header);
            }
            // The lowest file of a chain may be a raw disk: only an overlay's own name for it is believed.
            let backing = header.and_then(|header| header.backing).filter(|_| name != base);
            let Some(backing) = backing else {
                chain.broken = self.newer(&base, &chain)?;
                return Ok(chain);
            };
            name = backing;
        }
        chain.broken = Some(format!("its chain has more than {CHAIN} files"));
        Ok(chain)
    }

    /// The record is of another moment than the files: it does not know the overlay that has the last of what was written.
    fn newer(&self, base: &str, chain: &Chain) -> std::io::Result<Option<String>> {
        if !chain.has_info {
            return Ok(None);
        }
        let is_overlay = |name: &&String| name.strip_prefix(base).is_some_and(|rest| rest.starts_with('.'));
        for name in self.files.keys().filter(is_overlay).filter(|name| !chain.files.contains(*name)) {
            let path = self.folder.join(name);
            let torn = |error: std::io::Error| (error.kind() == UnexpectedEof).then_some(()).ok_or(error);
            let header = match qcow2::header(&path) {
                Ok(header) => header,
                Err(error) => {
                    torn(error)?;
                    return Ok(Some(format!(
                        "{name} ends within its header: which of its files is the newest is not certain"
                    )));
                }
            };
            let stands_on = header.and_then(|header| header.backing);
            // One that is just being made holds nothing yet.
            if let Some(below) = stands_on.filter(|below| chain.files.contains(below))
                && qcow2::holds_data(&path).or_else(|error| torn(error).map(|()| true))?
            {
                return Ok(Some(format!(
                    "{name} stands on {below} and is not known to {base}.info: which of its files is the newest is not certain"
                )));
            }
        }
        Ok(None)
    }
}
