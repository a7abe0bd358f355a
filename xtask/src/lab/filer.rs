//! The site's filer: a btrfs file system in a sparse file, and the share on it bind-mounted where os-brick would mount
//! it over NFS. os-brick's own mount does nothing when something is mounted there already. The kernel needs no NFS.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::services::Tools;
use super::setup;
use super::site::Site;
use crate::failure::Failure;

/// Sparse: what is not written takes no room.
const POOL_BYTES: u64 = 20 << 30;
const LIMIT: Duration = Duration::from_mins(1);

/// A folder that is there already in the share's place.
pub fn mount_share(site: &Site, tools: &Tools, folder: &Path) -> Result<(), Failure> {
    let share = site.share_mount();
    setup::make_folder(&share)?;
    if is_mounted(&share) {
        return Ok(());
    }
    call(site, tools, &["mount", "--bind", &folder.display().to_string(), &share.display().to_string()])
}

/// Makes the filer unless it is there, and mounts what is not mounted.
pub fn mount(site: &Site, tools: &Tools) -> Result<(), Failure> {
    let (pool, share) = (site.pool(), site.share_mount());
    // A share that was mounted otherwise is what somebody wanted.
    if is_mounted(&share) && !is_mounted(&pool) {
        return Ok(());
    }
    let export = pool.join("export");
    for folder in [&pool, &share] {
        setup::make_folder(folder)?;
    }
    if !is_mounted(&pool) {
        make_pool(site, tools)?;
        let image = site.pool_image().display().to_string();
        call(site, tools, &["mount", "-o", "loop", &image, &pool.display().to_string()])?;
    }
    if !export.is_dir() {
        // A subvolume: the share alone can then be snapshotted, at one point in time.
        call(site, tools, &["btrfs", "-q", "subvolume", "create", &export.display().to_string()])?;
    }
    if !is_mounted(&share) {
        call(site, tools, &["mount", "--bind", &export.display().to_string(), &share.display().to_string()])?;
    }
    Ok(())
}

/// Takes away every mount below the site's folder, innermost first; one that is in use is taken out of the tree and
/// ends with its last user.
pub fn unmount(site: &Site, how: Unmount) -> Result<(), Failure> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for place in mounted_below(&mounts, &site.folder()).into_iter().rev() {
        let quietly = |arguments: &[&str]| {
            let mut umount = Command::new("umount");
            umount.args(arguments).arg(&place).stdin(Stdio::null()).stderr(Stdio::null());
            umount.status().is_ok_and(|status| status.success())
        };
        let gone = (how == Unmount::InOrder && quietly(&[])) || quietly(&["-l"]);
        if !gone {
            return Err(Failure::new(
                format!("{}: {place} could not be unmounted", site.name),
                format!("nothing was deleted; see `fuser -vm {place}`, then run this again"),
            ));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    InOrder,
    /// Even though something may use it: `umount -l`.
    AtOnce,
}

fn make_pool(site: &Site, tools: &Tools) -> Result<(), Failure> {
    let image = site.pool_image();
    if image.exists() {
        return Ok(());
    }
    // Under another name until it holds a file system: an interrupt in between leaves nothing that looks finished.
    let new = image.with_extension("new");
    let make = || fs::File::create(&new)?.set_len(POOL_BYTES);
    make().map_err(|error| {
        Failure::new(
            format!("{} cannot be made: {error}", new.display()),
            "see whether the disk is full (df -h)",
        )
    })?;
    call(
        site,
        tools,
        &["mkfs.btrfs", "-q", "-f", "-m", "single", "-d", "single", &new.display().to_string()],
    )?;
    fs::rename(&new, &image).map_err(|error| {
        Failure::new(
            format!("{} cannot be renamed: {error}", new.display()),
            "see whether the disk is full (df -h)",
        )
    })
}

fn call(site: &Site, tools: &Tools, words: &[&str]) -> Result<(), Failure> {
    setup::run(site, tools, "filer", words, LIMIT, |_| ())
}

fn is_mounted(place: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|target| Path::new(target) == place))
}

/// The mounts below a folder, in the order in which they were mounted.
fn mounted_below(mounts: &str, folder: &Path) -> Vec<String> {
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    targets.filter(|target| Path::new(target).starts_with(folder)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mounts_below_the_sites_own_folder_are_its() {
        let mounts = "/dev/loop0 /lab/north/nfs/pool btrfs rw 0 0\n\
                      /dev/loop1 /lab/north.destroyed-1/nfs/pool btrfs rw 0 0\n\
                      /dev/loop0 /lab/north/cinder/mnt/0a58 btrfs rw 0 0\n";
        assert_eq!(
            mounted_below(mounts, Path::new("/lab/north")),
            ["/lab/north/nfs/pool", "/lab/north/cinder/mnt/0a58"]
        );
    }
}
