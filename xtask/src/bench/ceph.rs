//! A Ceph cluster of one monitor and one OSD on loopback, in a folder: a size comes in; a configuration with an empty pool
//! goes out. Its daemons end with it, and its folder is removed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::at;
use super::daemon::Daemon;
use crate::failure::Failure;

pub const POOL: &str = "volumes";

const FSID: &str = "6a1d6c1e-5b8b-4d55-8a3e-0f6f0a4a9c11";
const OSD: &str = "b3f0d5b2-7f0e-4f5e-9a44-9a0b8f2a7d21";
/// For its first answer.
const START: Duration = Duration::from_mins(2);

pub struct Ceph {
    pub conf: PathBuf,
    folder: PathBuf,
    daemons: Vec<Daemon>,
}

impl Ceph {
    /// Monitor, OSD and pool, in some ten seconds. `disk_bytes` is what the OSD can hold, in a sparse file.
    pub fn start(folder: &Path, disk_bytes: u64) -> Result<Self, Failure> {
        let _ = std::fs::remove_dir_all(folder);
        let conf = folder.join("ceph.conf");
        let make = || {
            std::fs::create_dir_all(folder.join("mon"))?;
            std::fs::create_dir_all(folder.join("osd"))?;
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            std::fs::write(&conf, configuration(folder, port, disk_bytes))?;
            Ok(port)
        };
        let port = make().map_err(|e| at(folder, &e))?;
        let mut ceph = Self { conf, folder: folder.to_owned(), daemons: Vec::new() };
        let (keyring, map) = (ceph.at("keyring"), ceph.at("monmap"));
        ceph.make_keys(&keyring)?;
        let address = format!("[v1:127.0.0.1:{port}/0]");
        ceph.run("monmaptool", &["--create", "--fsid", FSID, "--addv", "a", &address, &map])?;
        ceph.run("ceph-mon", &["--mkfs", "-i", "a", "--monmap", &map, "--keyring", &keyring])?;
        ceph.daemon("ceph-mon", "a")?;
        ceph.run("ceph", &["--connect-timeout", "60", "mon", "stat"])?;
        ceph.run("ceph", &["osd", "new", OSD])?;
        ceph.run("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", OSD])?;
        ceph.daemon("ceph-osd", "0")?;
        let mut osd = ceph.daemons.pop().expect("it was started just now");
        osd.becomes("up", START, || {
            let said = ceph.run("ceph", &["osd", "stat", "-f", "json"]);
            said.is_ok_and(|said| said.contains("\"num_up_osds\":1"))
        })?;
        ceph.daemons.push(osd);
        ceph.run("ceph", &["osd", "pool", "create", POOL, "8"])?;
        ceph.run("rbd", &["pool", "init", POOL])?;
        Ok(ceph)
    }

    fn at(&self, below: &str) -> String {
        self.folder.join(below).display().to_string()
    }

    fn make_keys(&self, keyring: &str) -> Result<(), Failure> {
        for (name, daemons, more) in [
            ("mon.", &["mon"] as &[_], &["--create-keyring"] as &[_]),
            ("client.admin", &["mon", "osd", "mgr"], &[]),
            ("osd.0", &["osd"], &["--cap", "mon", "allow profile osd"]),
        ] {
            let mut args = vec![keyring, "--gen-key", "-n", name];
            args.extend(more);
            for daemon in daemons {
                args.extend(["--cap", daemon, "allow *"]);
            }
            self.run("ceph-authtool", &args)?;
        }
        Ok(())
    }

    fn daemon(&mut self, program: &str, id: &str) -> Result<(), Failure> {
        let mut command = Command::new(program);
        command.args(["-f", "-i", id, "--conf"]).arg(&self.conf);
        self.daemons.push(Daemon::start(&command, &self.folder.join(format!("{program}.log")))?);
        Ok(())
    }

    /// Runs one of Ceph's programs to its good end: what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String, Failure> {
        let mut command = Command::new("timeout");
        command.args(["600", program]).args(args).arg("--conf").arg(&self.conf);
        let output = command.output().map_err(|e| {
            Failure::new(format!("timeout(1) could not be started: {e}"), "install the package `coreutils`")
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Failure::new(
                format!("{program} {args:?} failed ({}):\n{said}", output.status),
                format!("{} has the daemons' logs as long as this runs", self.folder.display()),
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        self.daemons.clear();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The OSD keeps no data that was read, so that whoever reads second reads it as cold as the first.
fn configuration(folder: &Path, port: u16, disk_bytes: u64) -> String {
    let folder = folder.display();
    format!(
        "[global]
fsid = {FSID}
mon host = [v1:127.0.0.1:{port}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr2 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
admin socket =
run dir = {folder}
pid file =
log file =
log to stderr = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon data avail crit = 1
osd crush chooseleaf type = 0
rbd default features = 61
auth allow insecure global id reclaim = false
[mon]
mon data = {folder}/mon
[osd]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = {disk_bytes}
bluestore block create = true
bluestore default buffered read = false
osd memory target = 939524096
osd memory target autotune = false
bluestore cache autotune = false
bluestore cache size = 67108864
osd class update on start = false
"
    )
}
