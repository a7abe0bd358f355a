//! Runs with change tracking, beside what the authors of a storage offer for the same: one disk, of which a volume's bytes
//! are the content; the same changes to it; each program asks the storage what was written. Prints a table.

mod qcow2;
mod rbd;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use self::qcow2::{Image, Use};
use self::rbd::Pool;
use super::farsite::{Farsite, Item};
use super::measure::{self, Measured, median};
use super::table::{OWN, Row};
use super::volume::{self, Change};
use super::{Tool, at, same};
use crate::failure::Failure;
use crate::programs::{self, Program};

/// The system's own, for which Ceph's module is built.
const PYTHON: &str = "/usr/bin/python3";
const PROGRAMS: &[Program] = &[
    Program { name: "zstd", package: "zstd" },
    Program { name: "qemu-img", package: "qemu-utils" },
    Program { name: "qemu-nbd", package: "qemu-utils" },
    Program { name: "qemu-storage-daemon", package: "qemu-utils" },
    Program { name: "ceph-mon", package: "ceph-mon" },
    Program { name: "ceph-osd", package: "ceph-osd" },
    Program { name: "rbd", package: "ceph-common" },
];
const ROWS: [Row; 3] = [Row::NoChange, Row::Pages, Row::Sequential];

/// A disk as a storage keeps it, and how its authors' own programs back it up.
trait Disk {
    fn storage(&self) -> &'static str;
    fn peer(&self) -> &'static str;
    fn item(&self) -> Item;
    /// Writes a change to the disk.
    fn write(&self, change: Change, size: u64) -> Result<(), Failure>;
    /// The peer's next backup: all that it takes until what was written since the last lies compressed and durable in
    /// `store`. The first one holds everything.
    fn back_up(&mut self) -> Command;
    fn store(&self) -> &Path;
    /// What all backups together hold, as a plain file.
    fn restore(&self, to: &Path) -> Result<(), Failure>;
}

/// Scripts of this benchmark, and the folder for all that a series of rows leaves.
struct Place {
    scripts: PathBuf,
    folder: PathBuf,
}

type Key = (usize, Row, bool);

pub fn measure(
    root: &Path,
    binary: &Path,
    folder: &Path,
    size_mib: u64,
    runs: usize,
) -> Result<String, Failure> {
    programs::ensure(&root.join("xtask"), PROGRAMS)?;
    let place = Place { scripts: root.join("xtask/src/bench/tracked"), folder: folder.join("tracked") };
    let mut measured: BTreeMap<Key, Vec<Measured>> = BTreeMap::new();
    let mut names = Vec::new();
    for turn in 0..runs {
        names.clear();
        for number in 0..3 {
            let _ = std::fs::remove_dir_all(&place.folder);
            std::fs::create_dir_all(&place.folder).map_err(|e| at(&place.folder, &e))?;
            let volume = place.folder.join("volume");
            volume::create(&volume, size_mib)?;
            let mut disk: Box<dyn Disk> = match number {
                0 => Box::new(Pool::with(&place, &volume)?),
                1 => Box::new(Image::of(&place, &volume, Use::Closed)?),
                _ => Box::new(Image::of(&place, &volume, Use::Open)?),
            };
            eprintln!("== {}, run {} of {runs}", disk.storage(), turn + 1);
            one_series(binary, &place.folder, &volume, &mut *disk, &mut |row, is_own, figures| {
                measured.entry((number, row, is_own)).or_default().push(figures);
            })?;
            names.push((disk.storage(), disk.peer()));
        }
    }
    let _ = std::fs::remove_dir_all(&place.folder);
    let medians = measured.into_iter().map(|(key, turns)| (key, median(turns))).collect();
    Ok(print(&names, &medians))
}

/// First copies, which are not counted; then every row, the peer first; then both must give back what the volume holds.
fn one_series(
    binary: &Path,
    folder: &Path,
    volume: &Path,
    disk: &mut dyn Disk,
    counted: &mut dyn FnMut(Row, bool, Measured),
) -> Result<(), Failure> {
    let mut own = Farsite::of(disk.item(), binary, folder);
    own.init()?;
    let both = |disk: &mut dyn Disk| -> Result<[Measured; 2], Failure> {
        let command = disk.back_up();
        let peer = measure::backup(command, &[0], folder, disk.store())?;
        Ok([peer, measure::backup(own.backup(), own.good(), folder, own.store())?])
    };
    both(disk)?;
    for row in ROWS {
        if let Some(change) = row.change() {
            let size = std::fs::metadata(volume).map_err(|e| at(volume, &e))?.len();
            volume::change(volume, change)?;
            disk.write(change, size)?;
        }
        let [peer, farsite] = both(disk)?;
        for (name, is_own, m) in [("peer", false, peer), (OWN, true, farsite)] {
            eprintln!(
                "   {:52} {name:9} {:7.2} s  {:7.2} s of processor  {:6.0} MiB  {:>11} bytes",
                row.title(),
                m.wall_s,
                m.cpu_s,
                m.peak_mib,
                m.store_bytes
            );
            counted(row, is_own, m);
        }
    }
    let restored = folder.join("restored");
    measure::run(own.restore(&restored), own.good(), folder)?;
    same(volume, &restored, OWN)?;
    std::fs::remove_file(&restored).map_err(|e| at(&restored, &e))?;
    disk.restore(&restored)?;
    same(volume, &restored, disk.peer())
}

/// Lets `writer.py` write a change to the disk that `to` names.
fn write(place: &Place, to: &[&str], change: Change, size: u64) -> Result<(), Failure> {
    let mut writer = Command::new(PYTHON);
    writer.arg(place.scripts.join("writer.py")).args(to).stdin(Stdio::piped());
    let mut send = || -> std::io::Result<bool> {
        let mut child = writer.spawn()?;
        let mut pipe = BufWriter::new(child.stdin.take().expect("it was asked for"));
        let sent = volume::writes(change, size, &mut |offset, bytes| {
            writeln!(pipe, "{offset} {}", bytes.len())?;
            pipe.write_all(bytes)
        });
        let sent = sent.and_then(|()| pipe.flush());
        drop(pipe);
        let is_good = child.wait()?.success();
        sent.map(|()| is_good)
    };
    match send() {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Failure::new("a change could not be written to the disk", "see what Python says above"))
        }
        Err(error) => Err(at(Path::new(PYTHON), &error)),
    }
}

fn print(names: &[(&str, &str)], medians: &BTreeMap<Key, Measured>) -> String {
    let mut out = String::from(
        "\n| disk | work | with | wall, s | processor, s | peak, MiB | stored, bytes | wall against the peer | bytes against the peer |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for ((number, row, is_own), m) in medians {
        let Some((storage, peer)) = names.get(*number) else { continue };
        let ratio = |figure: fn(&Measured) -> f64| {
            let base = medians.get(&(*number, *row, false)).filter(|_| *is_own);
            base.map_or_else(|| "–".to_owned(), |base| format!("{:.2}", figure(m) / figure(base)))
        };
        let _ = writeln!(
            out,
            "| {storage} | {} | {} | {:.2} | {:.2} | {:.0} | {} | {} | {} |",
            row.title(),
            if *is_own { OWN } else { peer },
            m.wall_s,
            m.cpu_s,
            m.peak_mib,
            m.store_bytes,
            ratio(|m| m.wall_s),
            ratio(|m| m.store_bytes as f64),
        );
    }
    out
}
