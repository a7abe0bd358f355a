//! Where everything of a demo lies: one folder, with a folder for each site and one for what north's users know.

use std::path::{Path, PathBuf};

use super::database::Kind;

/// The group that the shipped policies protect.
pub const GROUP: &str = "cloud";
/// Marks a folder as a demo's, so that `--remove` removes nothing else.
const MARK: &str = ".farsite-demo";

/// The demo's folders and files.
#[derive(Debug, Clone)]
pub struct Layout {
    pub root: PathBuf,
}

impl Layout {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Lays out what is shared by both sites.
    pub fn create(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(self.promises())?;
        std::fs::create_dir_all(self.logs())?;
        std::fs::create_dir_all(self.temporary())?;
        std::fs::write(self.root.join(MARK), "")
    }
    pub fn is_a_demo(&self) -> bool {
        self.root.join(MARK).is_file()
    }

    /// Everything that north has, the agent's state and keys included.
    pub fn north(&self) -> PathBuf {
        self.root.join("north")
    }
    /// Where north's folder goes in the disaster.
    pub fn north_destroyed(&self) -> PathBuf {
        self.root.join("north.destroyed")
    }
    pub fn south(&self) -> PathBuf {
        self.root.join("south")
    }
    /// What north's users were told is safe: it survives north, as users do.
    pub fn promises(&self) -> PathBuf {
        self.root.join("promises")
    }
    /// `TMPDIR` of what is started at south: a promotion keeps sockets there.
    pub fn temporary(&self) -> PathBuf {
        self.root.join("t")
    }
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
    pub fn north_config(&self) -> PathBuf {
        self.north().join("farsite.yaml")
    }
    pub fn south_config(&self) -> PathBuf {
        self.south().join("farsite.yaml")
    }
    pub fn south_state(&self) -> PathBuf {
        self.south().join("state")
    }
    /// The replica store's objects.
    pub fn replica(&self) -> PathBuf {
        self.south().join("replica")
    }
    /// Where the failover puts things; farsite.yaml names the same as the group's places.
    pub fn south_cloud(&self) -> PathBuf {
        self.south().join("cloud")
    }
    pub fn south_database(&self, kind: Kind) -> PathBuf {
        kind.place(&self.south_cloud())
    }
    /// Keystone's keys at south: files keep their whole path below their place.
    pub fn south_keystone(&self) -> PathBuf {
        let keystone = self.north().join("keystone");
        self.south_cloud().join("files").join(keystone.strip_prefix("/").unwrap_or(&keystone))
    }
}
