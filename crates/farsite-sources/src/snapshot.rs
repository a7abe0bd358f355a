//! Reflink snapshots: a file comes in, an open copy of one instant of it goes out, made by the file system in no time
//! and sharing its blocks (`FICLONE`: XFS, Btrfs, NFS 4.2 and others). Where the file system has none, nothing goes out. What
//! must hold: a snapshot takes no name that anybody could see longer than it is being made, and what a killed process
//! left behind is removed by the next snapshot in that folder.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Snapshots begin so; a listing of volumes skips them as it skips all hidden files.
const PREFIX: &str = ".farsite-snap-";

/// A snapshot of `file`, made in one of these folders (the first that can). It has no name any more when it is returned:
/// its blocks are freed when it is closed, even by SIGKILL.
pub fn reflink(file: &Path, folders: &[&Path]) -> io::Result<Option<File>> {
    let source = File::open(file)?;
    for folder in folders {
        remove_left_over(folder);
        if let Some(snapshot) = clone_into(&source, folder) {
            return Ok(Some(snapshot));
        }
    }
    Ok(None)
}

fn clone_into(source: &File, folder: &Path) -> Option<File> {
    // A file without a name can be given one later, when it is to be kept; not every file system has such.
    let nameless = rustix::fs::OFlags::TMPFILE.bits().cast_signed();
    let made = File::options().read(true).write(true).custom_flags(nameless).mode(0o600).open(folder);
    if let Ok(made) = made {
        return rustix::fs::ioctl_ficlone(&made, source).is_ok().then_some(made);
    }
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("{}{number}", own_prefix()?));
    let made = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).ok()?;
    // Another file system, or one without reflinks: the error's kind tells no more than that.
    let cloned = rustix::fs::ioctl_ficlone(&made, source).is_ok();
    let unnamed = fs::remove_file(&path);
    if let Err(error) = unnamed {
        tracing::warn!("the snapshot {} could not be removed: {error}", path.display());
    }
    cloned.then_some(made)
}

/// `.farsite-snap-HOST-BOOT-PID-START-`: a pid is used again, together with its start time it is not until the next boot.
fn own_prefix() -> Option<String> {
    names(PREFIX).map(|(own, _)| own)
}

fn boot() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(blake3::hash(boot.trim().as_bytes()).to_hex()[..8].to_owned())
}

/// Folders of volumes are often shared between hosts, and pids mean nothing on another one.
fn host() -> Option<String> {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    // Without it two hosts, or containers, of one name could not be told apart: each boot is then a host of its own.
    let machine = if machine.trim().is_empty() { boot()? } else { machine.trim().to_owned() };
    let name = rustix::system::uname().nodename().to_bytes().to_owned();
    let hash = blake3::hash(&[machine.as_bytes(), &name].concat());
    Some(hash.to_hex()[..12].to_owned())
}

/// Start of a process in clock ticks since the host's start (proc(5), field 22 of `stat`); `None` when it has ended.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, and may hold spaces and brackets itself.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // One that has ended and that nobody has waited for yet reads nothing any more.
    let has_ended = matches!(fields.next()?, "Z" | "X");
    if has_ended { None } else { fields.nth(18)?.parse().ok() }
}

/// Whether `BOOT-PID-START-…` names a process of this host that has ended: with its boot, at the latest.
pub(crate) fn is_left_over(rest: &str) -> bool {
    let (Some((then, rest)), Some(now)) = (rest.split_once('-'), boot()) else { return false };
    let mut parts = rest.split('-').map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start))) = (parts.next(), parts.next()) else { return false };
    if then != now {
        return true;
    }
    u32::try_from(pid).ok().and_then(start_of) != Some(start)
}

/// Names of this process's snapshots begin with the first; of a name that begins with the second, the rest tells by
/// [`is_left_over`] whether its process lives.
pub(crate) fn names(prefix: &str) -> Option<(String, String)> {
    let (pid, host) = (std::process::id(), host()?);
    Some((format!("{prefix}{host}-{}-{pid}-{}-", boot()?, start_of(pid)?), format!("{prefix}{host}-")))
}

/// Removes the snapshots of processes of this host that have ended.
fn remove_left_over(folder: &Path) {
    let (Some(host), Ok(entries)) = (host(), fs::read_dir(folder)) else { return };
    let ours = format!("{PREFIX}{host}-");
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&ours)) else { continue };
        if is_left_over(rest) {
            tracing::warn!("removing {}, which a killed process left behind", entry.path().display());
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_snapshot_stays_as_it_was_where_there_is_one_and_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        fs::write(&path, b"before").unwrap();
        if let Some(mut snapshot) = reflink(&path, &[dir.path()]).unwrap() {
            fs::write(&path, b"after!").unwrap();
            let mut text = String::new();
            snapshot.read_to_string(&mut text).unwrap();
            assert_eq!(text, "before");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(reflink(&dir.path().join("gone"), &[dir.path()]).is_err());
    }

    #[test]
    fn a_killed_process_that_nobody_has_waited_for_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = start_of(child.id()).unwrap();
        child.kill().unwrap();
        let begun = std::time::Instant::now();
        while !is_left_over(&format!("{}-{}-{start}-0", boot().unwrap(), child.id())) {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10));
        }
        child.wait().unwrap();
    }

    #[test]
    fn only_left_overs_of_ended_processes_of_this_host_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (host, boot) = (host().unwrap(), boot().unwrap());
        let own = format!("{}0", own_prefix().unwrap());
        let dead = format!("{PREFIX}{host}-{boot}-4194305-1-0");
        let reused = format!("{PREFIX}{host}-{boot}-{}-1-0", std::process::id());
        // The host went down with it: whatever process has its number now is another one.
        let start = start_of(std::process::id()).unwrap();
        let before = format!("{PREFIX}{host}-00000000-{}-{start}-0", std::process::id());
        let elsewhere = format!("{PREFIX}0123456789ab-{boot}-4194305-1-0");
        let odd = [".farsite-snap-odd".to_owned(), format!("{PREFIX}{host}-x-1"), "volume-1".to_owned()];
        for name in [&own, &dead, &reused, &before, &elsewhere].into_iter().chain(&odd) {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        remove_left_over(dir.path());
        let left = |name: &str| dir.path().join(name).exists();
        assert!(!left(&dead) && !left(&reused) && !left(&before));
        assert!(left(&own) && left(&elsewhere) && odd.iter().all(|name| left(name)));
    }
}
