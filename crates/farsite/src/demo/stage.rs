//! The demo's folder and its end: whatever happens, nothing runs on and nothing is left, unless it is to be kept.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::database::Kind;
use super::layout::Layout;
use super::processes::end_all;
use crate::failure::Failure;

/// The longest path of a Unix socket, without its closing zero (unix(7)), less the names that a promotion puts
/// beside it.
const SOCKET_PATH_BYTES: usize = 107 - 12;

/// Dropped, it ends and removes everything.
pub struct Stage {
    pub layout: Layout,
    kept: bool,
}

impl Stage {
    pub fn set(kind: Kind, seed: u64) -> Result<Self, Failure> {
        let mut root = fresh(&std::env::temp_dir(), seed)?;
        if kind == Kind::Mariadb
            && kind.place(&root.join("south/cloud")).as_os_str().len() > SOCKET_PATH_BYTES
        {
            // A socket's path has a limit, and some folders for temporary files have long names.
            let _ = std::fs::remove_dir(&root);
            root = fresh(Path::new("/tmp"), seed)?;
        }
        let layout = Layout::new(&root);
        let stage = Self { layout, kept: false };
        stage.layout.create().map_err(Failure::io(format!("laying out {}", root.display())))?;
        Ok(stage)
    }

    pub fn keep(&mut self) {
        self.kept = true;
    }
}

fn fresh(parent: &Path, seed: u64) -> Result<PathBuf, Failure> {
    let made = tempfile::Builder::new().prefix(&format!("farsite-demo-{seed}-")).tempdir_in(parent);
    made.map(tempfile::TempDir::keep).map_err(Failure::io(format!("making a folder in {}", parent.display())))
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = clear(&self.layout) {
            tracing::warn!("{} was not removed: {error}", self.layout.root.display());
        }
    }
}

/// Ends what was started below the folder, and removes it.
pub fn clear(layout: &Layout) -> std::io::Result<()> {
    end_all(&layout.root);
    // North's remains were locked away.
    let remains = layout.north_destroyed();
    if remains.exists() {
        std::fs::set_permissions(&remains, std::fs::Permissions::from_mode(0o700))?;
    }
    std::fs::remove_dir_all(&layout.root)
}
