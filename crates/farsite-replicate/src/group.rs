//! One group on its way to one standby: its policy, its store, its keys, and this host's own folder for it. A
//! configuration comes in; a [`Group`] goes out that holds the folder's lock, so that one process at a time
//! replicates it.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farsite_model::clock::Clock;
use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_model::{ItemId, SiteName};
use farsite_openstack::SiteCloud;
use farsite_store::Store;
use farsite_store::backend::race;
use farsite_store::hex::Hex;
use farsite_store::keys::{BlockSecret, Signer};
use farsite_store::local_map::LocalMap;
use rustix::fs::{FlockOperation, flock};

use crate::databases::Logs;
use crate::record::Record;
use crate::throttle::Throttled;
use crate::{ReplicateError, connect, hosts};

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
    /// The cloud of the site, for what its sources ask it.
    pub cloud: Arc<SiteCloud>,
    pub record: Arc<Record>,
    /// The shippers of its databases' logs, which go on between runs; whoever makes a run holds them.
    pub logs: tokio::sync::Mutex<Logs>,
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
        if let Some(why) = hosts::not_ours(policy) {
            return Err(ReplicateError::Setup(format!(
                "group {} is {why}\n  hint: run it there; `on:` in the policy says which host that is (that of the logged databases, else the first one named), and `uname -n` what this one calls itself",
                policy.group
            )));
        }
        let folder = Home::of(config, policy).of_standby(to);
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
            cloud: Arc::new(SiteCloud::of(config, &policy.site)),
            record,
            logs: tokio::sync::Mutex::default(),
            folder,
            _lock: lock,
        })
    }

    /// What its standbys share at this host.
    pub(crate) fn home(&self) -> Home {
        Home::of(&self.config, &self.policy)
    }
    pub(crate) fn maps(&self) -> PathBuf {
        self.folder.join(MAPS)
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

/// Making a version, or removing one, takes a moment; a busy pool of Ceph may take longer.
const VERSIONS_WAIT: Duration = Duration::from_mins(1);
const VERSIONS_LOOK: Duration = Duration::from_millis(10);
const MAPS: &str = "maps";
const UNCOMMITTED: &str = "uncommitted";
const FENCED: &str = "fenced";

/// A group's folder at this host, `<state>/groups/<group>`, in which each of its standbys has one of its own. No site's name
/// begins with a dot.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    folder: PathBuf,
    standbys: Vec<SiteName>,
}

impl Home {
    pub(crate) fn of(config: &Config, policy: &Policy) -> Self {
        let folder = config.state_dir().join("groups").join(policy.group.as_str());
        Self { folder, standbys: policy.to.clone() }
    }
    /// Tells what this group keeps on shared file systems from what others keep: it follows from where its state lies.
    pub(crate) fn owner(&self) -> String {
        let folder = self.folder.canonicalize().unwrap_or_else(|_| self.folder.clone());
        let host = crate::capture::host_name();
        let hash = blake3::hash(format!("{host} {}", folder.display()).as_bytes()).to_hex();
        hash[..12].to_owned()
    }
    /// Versions of items that are kept for the next run.
    pub(crate) fn kept(&self) -> PathBuf {
        self.folder.join(".kept")
    }
    /// For work at the source that belongs to no run.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.folder.join(".scratch")
    }
    /// Notes of what is frozen.
    pub(crate) fn frozen(&self) -> PathBuf {
        self.folder.join(".frozen")
    }

    /// A standby whose store has said that another site is primary, and what it said. It counts until that store says
    /// otherwise, whether it can be reached or not.
    pub(crate) fn fenced_at(&self) -> Option<(SiteName, String)> {
        let said = |to: &SiteName| std::fs::read_to_string(self.of_standby(to).join(FENCED)).ok();
        self.standbys.iter().find_map(|to| Some((to.clone(), said(to)?)))
    }

    fn of_standby(&self, standby: &SiteName) -> PathBuf {
        self.folder.join(standby.as_str())
    }

    /// While it is held, no other run makes versions of items or lets them go. Blocks its thread for as long as another run
    /// holds it, up to a limit.
    pub(crate) fn hold_versions(&self) -> std::io::Result<File> {
        let file = File::options().append(true).create(true).open(self.folder.join(".versions"))?;
        let begun = std::time::Instant::now();
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if begun.elapsed() > VERSIONS_WAIT {
                return Err(std::io::Error::other(
                    "another run of the group holds its versions for too long",
                ));
            }
            std::thread::sleep(VERSIONS_LOOK);
        }
        Ok(file)
    }

    /// The versions of an item that some standby's next run stands on: that of its last point, or of one that is being made.
    pub(crate) fn needed_versions(&self, item: &ItemId) -> Vec<String> {
        let of = |standby: &SiteName| {
            let standby = self.of_standby(standby);
            let committed = LocalMap::open(&standby.join(MAPS), item).ok().flatten();
            let committed = committed.and_then(|map| Some(map.token()?.to_owned()));
            let begun = std::fs::read_to_string(uncommitted(&standby, item)).ok();
            [committed, begun]
        };
        self.standbys.iter().flat_map(of).flatten().collect()
    }
}

/// Where a run notes which version of an item its point will stand on.
fn uncommitted(standby: &Path, item: &ItemId) -> PathBuf {
    standby.join(UNCOMMITTED).join(farsite_store::local_map::stem(item))
}

impl Group {
    /// Its store says that another site is primary: other standbys of the group are told by it.
    pub(crate) fn note_fenced(&self, why: &str) {
        let path = self.folder.join(FENCED);
        if let Err(error) = std::fs::write(&path, why).and_then(|()| File::open(&path)?.sync_all()) {
            tracing::warn!(group = %self.policy.group, "{} was not written: {error}", path.display());
        }
    }
    /// Its store says that this site is primary.
    pub(crate) fn forget_fenced(&self) {
        let _ = std::fs::remove_file(self.folder.join(FENCED));
    }
    /// The run under way stands on a version of an item.
    pub(crate) fn note_version(&self, item: &ItemId, token: &str) -> std::io::Result<()> {
        let path = uncommitted(&self.folder, item);
        std::fs::create_dir_all(self.folder.join(UNCOMMITTED))?;
        std::fs::write(path, token)
    }
    /// The run has ended: its versions stand in the block maps, or nobody needs them.
    pub(crate) fn forget_noted_versions(&self) {
        let _ = std::fs::remove_dir_all(self.folder.join(UNCOMMITTED));
    }
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
