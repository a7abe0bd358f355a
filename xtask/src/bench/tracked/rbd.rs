//! An RBD image in a cluster of its own, beside `rbd export-diff`, which is what Ceph's authors offer for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Disk, Place, at, write};
use crate::bench::ceph::{Ceph, POOL};
use crate::bench::farsite::Item;
use crate::bench::volume::Change;
use crate::failure::Failure;
use crate::step::{minutes, run};

const IMAGE: &str = "disk";

pub struct Pool<'a> {
    place: &'a Place,
    ceph: Ceph,
    store: PathBuf,
    backups: usize,
}

impl<'a> Pool<'a> {
    pub fn with(place: &'a Place, volume: &Path) -> Result<Self, Failure> {
        let size = std::fs::metadata(volume).map_err(|e| at(volume, &e))?.len();
        // The image, what its snapshots hold of it, and the one that backups are played into.
        let ceph = Ceph::start(&place.folder.join("ceph"), 4 * size + (1 << 30))?;
        ceph.run("rbd", &["import", "--no-progress", &volume.to_string_lossy(), &format!("{POOL}/{IMAGE}")])?;
        let store = place.folder.join("store");
        std::fs::create_dir_all(&store).map_err(|e| at(&store, &e))?;
        Ok(Self { place, ceph, store, backups: 0 })
    }

    fn shell(&self, line: &str, args: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command.args(["-e", "-o", "pipefail", "-c", line, "bash"]).args(args);
        command.env("CEPH_CONF", &self.ceph.conf).current_dir(&self.store);
        command
    }
}

impl Disk for Pool<'_> {
    fn storage(&self) -> &'static str {
        "RBD"
    }
    fn peer(&self) -> &'static str {
        "rbd export-diff, zstd -3"
    }
    fn item(&self) -> Item {
        let conf = self.ceph.conf.display();
        let entry = format!(
            "cinder: {{ rbd: {{ pool: {POOL}, conf: {conf}, user: admin }}, select: {{ files: [{IMAGE}] }} }}"
        );
        Item { entry, id: format!("cinder/{IMAGE}") }
    }

    fn write(&self, change: Change, size: u64) -> Result<(), Failure> {
        write(self.place, &["rbd", &self.ceph.conf.to_string_lossy(), POOL, IMAGE], change, size)
    }

    /// The snapshot that the next difference is taken from stays, and the one before goes, as with Farsite.
    fn back_up(&mut self) -> Command {
        let image = format!("{POOL}/{IMAGE}");
        self.backups += 1;
        let (new, old) = (self.backups.to_string(), (self.backups - 1).to_string());
        let export = "rbd snap create --no-progress $1@$2; rbd export-diff --no-progress $FROM $1@$2 - | zstd -3 -q -o $2; sync $2";
        let mut command = if self.backups == 1 {
            self.shell(export, &[&image, &new])
        } else {
            let line = format!("{export}; rbd snap rm --no-progress $1@$3");
            self.shell(&line, &[&image, &new, &old])
        };
        command.env("FROM", if self.backups == 1 { String::new() } else { format!("--from-snap {old}") });
        command
    }

    fn store(&self) -> &Path {
        &self.store
    }

    fn restore(&self, to: &Path) -> Result<(), Failure> {
        let line = "rbd create --size 1 $1; for number in $(seq $2); do zstd -dcq $number | rbd import-diff --no-progress - $1; done; rbd export --no-progress $1 $3";
        let copy = format!("{POOL}/copy");
        let command = self.shell(line, &[&copy, &self.backups.to_string(), &to.to_string_lossy()]);
        run(command, minutes(30), "see what rbd says above")
    }
}
