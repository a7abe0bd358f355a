//! A qcow2 image, open in a process of QEMU or closed, beside QEMU's own incremental backup: a persistent bitmap and
//! `blockdev-backup`. For a closed image a process is started for as long as that takes, as for a machine that is switched
//! off; QEMU has no program that copies by a bitmap without one.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Disk, PYTHON, Place, at, write};
use crate::bench::daemon::Daemon;
use crate::bench::farsite::Item;
use crate::bench::volume::Change;
use crate::failure::Failure;
use crate::step::{minutes, run};

const EXPORT: &str = "disk";
const START: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Closed,
    Open,
}

pub struct Image<'a> {
    place: &'a Place,
    path: PathBuf,
    store: PathBuf,
    backups: usize,
    /// The process that has it open all the time.
    host: Option<Host>,
}

impl<'a> Image<'a> {
    pub fn of(place: &'a Place, volume: &Path, used: Use) -> Result<Self, Failure> {
        // In a folder of its own: what is kept beside it while it is read stays there.
        let (folder, store) = (place.folder.join("images"), place.folder.join("store"));
        for folder in [&folder, &store] {
            std::fs::create_dir_all(folder).map_err(|e| at(folder, &e))?;
        }
        let image = folder.join("disk");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(volume).arg(&image);
        run(convert, minutes(10), "look at free space")?;
        let host = (used == Use::Open).then(|| Host::start(&place.folder, &image)).transpose()?;
        Ok(Self { place, path: image, store, backups: 0, host })
    }
}

impl Disk for Image<'_> {
    fn storage(&self) -> &'static str {
        if self.host.is_some() { "qcow2, open" } else { "qcow2, closed" }
    }
    fn peer(&self) -> &'static str {
        "blockdev-backup, zstd -3"
    }
    fn item(&self) -> Item {
        let qmp = self.host.as_ref().map_or_else(String::new, |host| {
            format!(", qmp: {{ socket: {}, nbd: {} }}", host.monitors[0].display(), host.nbd.display())
        });
        let entry = format!("volume: {{ path: {}, format: qcow2{qmp} }}", self.path.display());
        Item { entry, id: "volume/disk".to_owned() }
    }

    fn write(&self, change: Change, size: u64) -> Result<(), Failure> {
        let through =
            |host: &Host| write(self.place, &["nbd", &host.nbd.to_string_lossy(), EXPORT], change, size);
        if let Some(host) = &self.host {
            return through(host);
        }
        // A guest that is started, writes and is shut down: what its process leaves in the image is complete.
        let host = Host::start(&self.place.folder, &self.path)?;
        through(&host)?;
        host.daemon.end(START)
    }

    fn back_up(&mut self) -> Command {
        self.backups += 1;
        let (how, image) = match &self.host {
            Some(host) => ("open", &host.monitors[1]),
            None => ("closed", &self.path),
        };
        let line = "$1 $2 $3 $4 $5 $6; zstd -3 -q --rm $6; sync $6.zst";
        let mut command = Command::new("bash");
        command.args(["-e", "-c", line, "bash", PYTHON]).arg(self.place.scripts.join("backup.py"));
        command.arg(how).arg(image).arg(if self.backups == 1 { "full" } else { "incremental" });
        command.arg(self.store.join(self.backups.to_string()));
        command
    }

    fn store(&self) -> &Path {
        &self.store
    }

    /// Each image stands on the one before.
    fn restore(&self, to: &Path) -> Result<(), Failure> {
        let line = "cd $1; zstd -dq *.zst; for n in $(seq 2 $2); do qemu-img rebase -u -f qcow2 -F qcow2 -b $((n - 1)) $n; done; qemu-img convert -f qcow2 -O raw $2 $3";
        let mut command = Command::new("bash");
        command.args(["-e", "-c", line, "bash"]).arg(&self.store).arg(self.backups.to_string()).arg(to);
        run(command, minutes(30), "see what is said above")
    }
}

/// A process that has the image open, with a monitor for each who asks and an export at which a guest writes.
struct Host {
    daemon: Daemon,
    monitors: [PathBuf; 2],
    nbd: PathBuf,
}

impl Host {
    fn start(folder: &Path, image: &Path) -> Result<Self, Failure> {
        let monitors = ["m0", "m1"].map(|name| folder.join(name));
        let nbd = folder.join("nbd");
        let mut command = Command::new("qemu-storage-daemon");
        for (id, monitor) in monitors.iter().enumerate() {
            let _ = std::fs::remove_file(monitor);
            command
                .arg("--chardev")
                .arg(format!("socket,id=m{id},path={},server=on,wait=off", monitor.display()));
            command.arg("--monitor").arg(format!("chardev=m{id}"));
        }
        let _ = std::fs::remove_file(&nbd);
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=file,filename={}", image.display()))
            .args(["--blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap"])
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={},max-connections=0", nbd.display()))
            .arg("--export")
            .arg(format!("type=nbd,id=guest,node-name=disk,name={EXPORT},writable=on"));
        let mut daemon = Daemon::start(&command, &folder.join("host.log"))?;
        // The export is the last thing that it sets up.
        daemon.becomes("ready", START, || UnixStream::connect(&nbd).is_ok())?;
        Ok(Self { daemon, monitors, nbd })
    }
}
