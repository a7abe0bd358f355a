//! One group on its way to one standby: its policy, its store, its keys, and this host's own folder for it. A
//! configuration comes in; a [`Group`] goes out that holds the folder's lock, so that one process at a time
//! replicates it.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farsite_model::clock::Clock;
use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_model::{ItemId, SiteName};
use farsite_store::Store;
use farsite_store::backend::race;
use farsite_store::hex::Hex;
use farsite_store::keys::{BlockSecret, Signer};
use rustix::fs::{FlockOperation, flock};

use crate::record::Record;
use crate::throttle::Throttled;
use crate::{ReplicateError, connect};

/// Rounds and writers of the race that every start holds at the store; `farsite init` and `check` hold longer ones.
const RACE_ROUNDS: usize = 12;
const RACE_WRITERS: usize = 4;

/// A group that this process replicates to the store at `to`.
pub struct Group {
    pub config: Arc<Config>,
    pub policy: Policy,
    pub to: SiteName,
    pub store: Store,
    pub signer: Arc<Signer>,
    pub secret: BlockSecret,
    pub clock: Arc<dyn Clock>,
    pub record: Arc<Record>,
    /// `<state>/groups/<group>/<to>`: local maps, timelines, the run under way.
    pub folder: PathBuf,
    _lock: File,
}

impl Group {
    /// Takes the lock, opens the store and proves that its create-only writes are atomic.
    pub async fn open(
        config: &Arc<Config>,
        policy: &Policy,
        to: &SiteName,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ReplicateError> {
        if policy.site != config.site {
            return Err(ReplicateError::Setup(format!(
                "group {} is at site {}, and this host is at {}\n  hint: replication runs where the data is",
                policy.group, policy.site, config.site
            )));
        }
        let folder = folder(config, policy, to);
        std::fs::create_dir_all(&folder)
            .map_err(ReplicateError::io(format!("creating {}", folder.display())))?;
        let lock = lock(&folder, policy)?;
        let record = Arc::new(Record::open(&config.state_dir())?);
        let signer = Arc::new(connect::source_agent(config)?);
        let secret = connect::block_secret(config)?;
        let mut store = connect::store(config, to).await?;
        race::race(&store.backend, &Hex::<8>::random().to_string(), RACE_ROUNDS, RACE_WRITERS)
            .await
            .map_err(farsite_store::StoreError::from)?;
        store.backend = Throttled::around(store.backend.clone(), policy.bandwidth.clone());
        Ok(Self {
            config: config.clone(),
            policy: policy.clone(),
            to: to.clone(),
            store,
            signer,
            secret,
            clock,
            record,
            folder,
            _lock: lock,
        })
    }

    pub(crate) fn owner(&self) -> String {
        owner(&self.folder)
    }
    pub(crate) fn maps(&self) -> PathBuf {
        self.folder.join("maps")
    }
    /// Copies of the blocks that were shipped last.
    pub(crate) fn shipped(&self) -> PathBuf {
        self.folder.join("shipped")
    }
    pub(crate) fn runs(&self) -> PathBuf {
        self.folder.join("runs")
    }
    /// Files of one item, named so that any item id is a file name.
    pub(crate) fn file_of(&self, below: &str, item: &ItemId, ending: &str) -> PathBuf {
        let stem = &blake3_stem(item);
        self.folder.join(below).join(format!("{stem}{ending}"))
    }
}

/// Where a group's state for one standby lies.
pub(crate) fn folder(config: &Config, policy: &Policy, to: &SiteName) -> PathBuf {
    config.state_dir().join("groups").join(policy.group.as_str()).join(to.as_str())
}

/// Tells what a group keeps on shared file systems from what others keep: it follows from where its state lies.
pub(crate) fn owner(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let host = crate::capture::host_name();
    let hash = blake3::hash(format!("{host} {}", folder.display()).as_bytes()).to_hex();
    hash[..12].to_owned()
}

fn blake3_stem(item: &ItemId) -> String {
    // Readable where it can be, and unique in any case.
    let readable: String = item
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .take(60)
        .collect();
    let hash = farsite_store::local_map::stem(item);
    format!("{readable}.{}", &hash[..12])
}

/// One process at a time: the kernel releases the lock when its holder dies, however it dies.
fn lock(folder: &Path, policy: &Policy) -> Result<File, ReplicateError> {
    let path = folder.join("lock");
    let fail = || ReplicateError::io(format!("locking {}", path.display()));
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(fail())?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        return Err(ReplicateError::Busy { group: policy.group.to_string(), pid: pid.trim().to_owned() });
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(fail())?;
    file.write_all(std::process::id().to_string().as_bytes()).map_err(fail())?;
    Ok(file)
}
