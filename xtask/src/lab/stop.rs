//! Stopping: in order (`stop`, `down`), or as a disaster does it (`destroy`).

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ceph;
use super::ending::{self, Stopped};
use super::filer::{self, Unmount};
use super::report::Report;
use super::services::{self, BELOW, CEPH, OPENSTACK, Service};
use super::setup;
use super::site::Site;
use crate::failure::Failure;

/// Stops these services: OpenStack's all at once, then what they need all at once, the storage last.
pub fn stop(site: &Site, services: &[Service], report: &Report) -> Result<(), Failure> {
    for half in [OPENSTACK.as_slice(), BELOW.as_slice(), CEPH.as_slice()] {
        let names: Vec<&str> =
            half.iter().filter(|service| services.contains(service)).map(|service| service.name()).collect();
        if names.is_empty() {
            continue;
        }
        for (name, stopped) in names.iter().zip(ending::stop(site, &names)?) {
            let seconds = |duration: Duration| duration.as_secs_f64();
            match stopped {
                Stopped::WasNotRunning => report.say(&format!("{name} was not running")),
                Stopped::InOrder(took) => report.say(&format!("{name} stopped ({:.1} s)", seconds(took))),
                Stopped::Killed(took) => {
                    report.say(&format!("{name} had to be killed ({:.1} s)", seconds(took)));
                }
            }
        }
    }
    Ok(())
}

/// Stops everything of the site and takes its mounts away; with `purge` its folder too.
pub fn down(site: &Site, purge: bool, report: &Report) -> Result<(), Failure> {
    ending::kill_leftovers(site, &[setup::MARK])?;
    stop(site, &services::of(site), report)?;
    filer::unmount(site, Unmount::InOrder)?;
    ceph::unlink_keyring(site)?;
    if purge && site.folder().exists() {
        fs::remove_dir_all(site.folder()).map_err(|error| {
            Failure::new(
                format!("{} cannot be deleted: {error}", site.folder().display()),
                "everything of the site has stopped; delete the folder by hand",
            )
        })?;
        report.say(&format!("{} deleted", site.folder().display()));
    }
    Ok(())
}

/// Ends the site at once, without giving anything the time to finish, and takes its data out of reach. Returns where
/// the data is now, if there was any.
pub fn destroy(site: &Site, report: &Report) -> Result<Option<PathBuf>, Failure> {
    let killed = ending::kill_all(site)?;
    report.say(&format!("{killed} processes killed"));
    filer::unmount(site, Unmount::AtOnce)?;
    ceph::unlink_keyring(site)?;
    let folder = site.folder();
    if !folder.exists() {
        return Ok(None);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = site.lab().join(format!("{}.destroyed-{now}", site.name));
    fs::rename(&folder, &aside).map_err(|error| {
        Failure::new(
            format!("{} cannot be renamed to {}: {error}", folder.display(), aside.display()),
            "everything of the site has been killed, but its data can still be read: move the folder by hand",
        )
    })?;
    Ok(Some(aside))
}
