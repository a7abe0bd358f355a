//! File systems that a story mounts for itself: in a mount namespace of its own, so that nobody else sees them and nothing
//! of them outlives the story.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::said;

/// Set in the process that has mounts of its own.
const INSIDE: &str = "FARSITE_TEST_OWN_MOUNTS";

/// Whether this process may mount without anybody seeing it.
pub fn are_own() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs a test of `module` (`module_path!()`) once more where it may mount: in a user and mount namespace of its own (unshare(1)), which needs
/// no root; as root a mount namespace is enough. `probe` is what it must be allowed to do there, a program and its
/// arguments; without one a file system in memory is.
#[track_caller]
pub fn with_own(module: &str, test: &str, probe: &[&str]) {
    // Tests are named from below their program.
    let test = module.split_once("::").map_or(test.to_owned(), |(_, module)| format!("{module}::{test}"));
    let exe = std::env::current_exe().expect("a test has a file");
    let probe = if probe.is_empty() { &["mount", "-t", "tmpfs", "tmpfs", "/mnt"] } else { probe };
    let ways: [&[&str]; 3] =
        [&["unshare", "-m"], &["unshare", "-rm"], &["sudo", "-n", "-E", "unshare", "-m"]];
    let may = |way: &[&str]| {
        let mut command = Command::new(way[0]);
        command.args(&way[1..]).args(probe);
        command.output().is_ok_and(|output| output.status.success())
    };
    let way = ways.into_iter().find(|way| may(way)).unwrap_or_else(|| {
        panic!("this test mounts file systems in a namespace of its own, and may not here: {probe:?} fails under unshare")
    });
    let inside = Command::new(way[0])
        .args(&way[1..])
        .arg(exe)
        .args(["--exact", &test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare starts");
    print!("{}", said(&inside));
    assert!(inside.status.success(), "{}", said(&inside));
}

/// A mounted file system in place of a folder's contents.
pub struct Mounted(PathBuf);

impl Mounted {
    /// One in memory, of a size of its own.
    pub fn over(folder: &Path, size: &str) -> Self {
        Self::mount(folder, &["-t", "tmpfs", "-o", size, "tmpfs"])
    }

    /// XFS in an image file, which has reflinks.
    pub fn xfs(folder: &Path, image: &Path, size_mib: u64) -> Self {
        let file = std::fs::File::create(image).expect("an image file");
        file.set_len(size_mib << 20).expect("a sparse file");
        ran(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(image));
        let image = image.to_str().expect("a name in UTF-8");
        Self::mount(folder, &["-t", "xfs", "-o", "loop", image])
    }

    /// Btrfs in an image file, as one subvolume; the folder is that subvolume.
    pub fn btrfs(folder: &Path, image: &Path, size_mib: u64) -> Self {
        let file = std::fs::File::create(image).expect("an image file");
        file.set_len(size_mib << 20).expect("a sparse file");
        ran(Command::new("mkfs.btrfs").args(["-q", "-m", "single", "-d", "single"]).arg(image));
        let image = image.to_str().expect("a name in UTF-8");
        Self::mount(folder, &["-t", "btrfs", "-o", "loop", image])
    }

    fn mount(folder: &Path, args: &[&str]) -> Self {
        let aside = folder.with_extension("aside");
        std::fs::rename(folder, &aside).expect("it is there");
        std::fs::create_dir(folder).expect("a folder");
        ran(Command::new("mount").args(args).arg(folder));
        let mounted = Self(folder.to_owned());
        ran(Command::new("cp").arg("-a").arg(aside.join(".")).arg(folder));
        std::fs::remove_dir_all(aside).expect("it can be removed");
        mounted
    }

    pub fn resize(&self, size: &str) {
        ran(Command::new("mount").args(["-o", &format!("remount,{size}")]).arg(&self.0));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[track_caller]
fn ran(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", said(&output));
}
