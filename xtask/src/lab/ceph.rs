//! A site's Ceph cluster, where it has one: a monitor, a manager (without it Cinder would see no free space) and an OSD in a
//! sparse file. What must hold: each step is done once, and begun anew where it was cut off.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::report::Report;
use super::services::{Service, Tools};
use super::setup::{self, make_folder, run};
use super::site::Site;
use super::start::Starting;
use crate::failure::Failure;

/// One command to a cluster that just begins.
const LIMIT: Duration = Duration::from_mins(2);
const POOLS: [&str; 2] = ["volumes", "images"];

/// From now on the site has a cluster. What it holds already stays where it is.
pub fn add(site: &Site) -> Result<(), Failure> {
    if site.has_ceph() {
        return Ok(());
    }
    make_folder(&site.folder())?;
    setup::mark(site, super::site::CEPH_MARK)?;
    // There is a volume type more.
    setup::forget_seeded(site)
}

/// Brings the cluster up; on first use it is made. `ceph.conf` is written.
pub fn up(
    site: &Site,
    tools: &Tools,
    starting: &mut Starting<'_>,
    limit: Duration,
    report: &Report,
) -> Result<(), Failure> {
    make_monitor(site, tools)?;
    link_keyring(site)?;
    starting.launch(&[Service::CephMon])?;
    starting.wait_for(&[Service::CephMon], limit)?;
    make_osd(site, tools)?;
    starting.launch(&[Service::CephMgr, Service::CephOsd])?;
    starting.wait_for(&[Service::CephOsd], limit)?;
    let done = site.below("ceph/.pools");
    if !done.exists() {
        for pool in POOLS {
            ceph(site, tools, &["ceph", "osd", "pool", "create", pool, "8"])?;
            ceph(site, tools, &["rbd", "pool", "init", pool])?;
        }
        setup::mark(site, "ceph/.pools")?;
        report.say("the pools volumes and images are there");
    }
    Ok(())
}

/// For os-brick, through which Cinder reads a volume that becomes an image, or moves to another back end.
fn link_keyring(site: &Site) -> Result<(), Failure> {
    let link = site.ceph_keyring_link();
    unlink_keyring(site)?;
    let made = fs::create_dir_all("/etc/ceph")
        .and_then(|()| std::os::unix::fs::symlink(site.etc().join("ceph/keyring"), &link));
    made.map_err(|error| Failure::new(format!("{}: {error}", link.display()), "the lab needs to be root"))
}

pub fn unlink_keyring(site: &Site) -> Result<(), Failure> {
    let link = site.ceph_keyring_link();
    match fs::remove_file(&link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(format!("{}: {error}", link.display()), "delete it by hand"))
        }
        _ => Ok(()),
    }
}

fn make_monitor(site: &Site, tools: &Tools) -> Result<(), Failure> {
    let done = site.below("ceph/.monitor");
    if done.exists() {
        return Ok(());
    }
    for folder in ["ceph/mon", "ceph/mgr", "ceph/osd"] {
        let folder = site.below(folder);
        empty(&folder)?;
        make_folder(&folder)?;
    }
    let keyring = site.etc().join("ceph/keyring").display().to_string();
    for (name, daemons, first) in [
        ("mon.", &["mon"] as &[_], true),
        ("client.admin", &["mon", "osd", "mgr"], false),
        ("osd.0", &["osd", "mgr", "mon"], false),
        ("mgr.x", &["mon", "osd"], false),
    ] {
        let mut words = vec!["ceph-authtool", keyring.as_str(), "--gen-key", "-n", name];
        words.extend(first.then_some("--create-keyring"));
        for daemon in daemons {
            words.extend(["--cap", *daemon, "allow *"]);
        }
        run(site, tools, "ceph-setup", &words, LIMIT, |_| ())?;
    }
    let map = site.below("ceph/monmap").display().to_string();
    let address = format!("[v1:{}:{}/0]", site.address(), super::site::CEPH_MONITOR_PORT);
    let fsid = site.ceph_fsid();
    let words = ["monmaptool", "--create", "--clobber", "--fsid", &fsid, "--addv", "a", &address, &map];
    run(site, tools, "ceph-setup", &words, LIMIT, |_| ())?;
    let words = ["ceph-mon", "--mkfs", "-i", "a", "--monmap", &map, "--keyring", &keyring];
    ceph(site, tools, &words)?;
    setup::mark(site, "ceph/.monitor")
}

fn make_osd(site: &Site, tools: &Tools) -> Result<(), Failure> {
    if site.below("ceph/.osd").exists() {
        return Ok(());
    }
    let folder = site.below("ceph/osd");
    empty(&folder)?;
    make_folder(&folder)?;
    let uuid = site.ceph_osd();
    ceph(site, tools, &["ceph", "osd", "new", &uuid, "0"])?;
    ceph(site, tools, &["ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", &uuid])?;
    setup::mark(site, "ceph/.osd")
}

/// What was cut off is begun anew.
fn empty(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::new(
            format!("{} cannot be emptied: {error}", folder.display()),
            "delete it by hand, then run this again",
        )),
        _ => Ok(()),
    }
}

fn ceph(site: &Site, tools: &Tools, words: &[&str]) -> Result<(), Failure> {
    let conf = site.ceph_conf().display().to_string();
    let words = [words, &["--conf", &conf]].concat();
    run(site, tools, "ceph-setup", &words, LIMIT, |_| ())
}
