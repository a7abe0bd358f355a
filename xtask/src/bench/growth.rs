//! What an incremental costs as the volume grows and the change does not, and as the change grows: sparse volumes on an XFS of
//! their own, whose reflinks tell what changed. A folder comes in; a table goes out. Mounting needs root.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::farsite::Farsite;
use super::measure::{self, Measured, median};
use super::volume::{Random, like_files};
use super::{Tool, at};
use crate::failure::Failure;
use crate::programs::{self, Program};
use crate::step::{minutes, run};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Data in every volume, whatever its size.
const BASE: u64 = GIB;
/// Room for the data, a kept version of it and the largest change; the file is sparse.
const DISK: u64 = 16 * GIB;

/// Size of the volume and bytes rewritten in it.
const STEPS: [(u64, u64); 6] = [
    (10 * GIB, GIB),
    (100 * GIB, GIB),
    (1024 * GIB, GIB),
    (100 * GIB, 64 * MIB),
    (100 * GIB, 256 * MIB),
    (100 * GIB, 2 * GIB),
];

/// One size and change, medians of all turns.
struct Row {
    size: u64,
    change: u64,
    still: Measured,
    changed: Measured,
}

pub fn measure(root: &Path, binary: &Path, folder: &Path, runs: usize) -> Result<String, Failure> {
    programs::ensure(&root.join("xtask"), &[Program { name: "mkfs.xfs", package: "xfsprogs" }])?;
    let mut rows = Vec::new();
    for (size, change) in STEPS {
        eprintln!("== {} GiB, of which {} MiB change", size / GIB, change / MIB);
        let mut turns = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let (still, changed) = one(binary, folder, size, change)?;
            turns.0.push(still);
            turns.1.push(changed);
        }
        rows.push(Row { size, change, still: median(turns.0), changed: median(turns.1) });
    }
    Ok(print(&rows))
}

/// A volume of its own, copied once; then a run with nothing changed, and one with the change.
fn one(binary: &Path, folder: &Path, size: u64, change: u64) -> Result<(Measured, Measured), Failure> {
    let disk = Disk::mount(&folder.join("growth"))?;
    let volume = disk.mounted.join("volume");
    let make = || -> std::io::Result<()> {
        let file = File::create(&volume)?;
        file.set_len(size)?;
        spread(&file, 1, BASE, MIB / 4, 0)
    };
    make().map_err(|e| at(&volume, &e))?;
    let mut tool = Farsite::new(binary, &disk.folder, &volume);
    tool.init()?;
    let replicate = || measure::backup(tool.backup(), tool.good(), folder, tool.store());
    replicate()?;
    let still = replicate()?;
    let alter = || spread(&File::options().write(true).open(&volume)?, 2, change, MIB, MIB);
    alter().map_err(|e| at(&volume, &e))?;
    let changed = replicate()?;
    eprintln!(
        "   no change {:.2} s, {:.0} MiB; changed {:.2} s, {:.0} MiB, {} bytes",
        still.wall_s, still.peak_mib, changed.wall_s, changed.peak_mib, changed.store_bytes
    );
    Ok((still, changed))
}

/// Writes `bytes` in pieces that lie at equal distances: noise and what is like files, in turns.
fn spread(file: &File, seed: u64, bytes: u64, piece: u64, shift: u64) -> std::io::Result<()> {
    let pieces = bytes / piece;
    let distance = file.metadata()?.len() / pieces;
    let mut buffer = vec![0; piece as usize];
    for number in 0..pieces {
        let mut random = Random(seed << 32 | number);
        if number % 2 == 0 {
            random.fill(&mut buffer);
        } else {
            like_files(&mut random, &mut buffer);
        }
        // Where pieces lie close together the shift must not lead beyond the end.
        let offset = number * distance + shift.min(distance - piece);
        file.write_all_at(&buffer, offset / 4096 * 4096)?;
    }
    file.sync_all()
}

fn print(rows: &[Row]) -> String {
    let mut out = String::from(
        "\n| volume | changed | no change, s | changed, s | against 10 GiB | peak, MiB | against 10 GiB | stored, MB |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let base = rows.iter().find(|base| base.change == row.change && base.size == 10 * GIB);
        let ratio = |figure: fn(&Measured) -> f64| {
            base.map_or_else(
                || "–".to_owned(),
                |b| format!("{:.2}", figure(&row.changed) / figure(&b.changed)),
            )
        };
        let _ = writeln!(
            out,
            "| {} GiB | {} MiB | {:.2} | {:.2} | {} | {:.0} | {} | {:.1} |",
            row.size / GIB,
            row.change / MIB,
            row.still.wall_s,
            row.changed.wall_s,
            ratio(|m| m.wall_s),
            row.changed.peak_mib,
            ratio(|m| m.peak_mib),
            row.changed.store_bytes as f64 / 1e6,
        );
    }
    out
}

/// An XFS in an image file, with the tool's own folder beside it; unmounted and removed in the end.
struct Disk {
    folder: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    fn mount(folder: &Path) -> Result<Self, Failure> {
        let _ = std::fs::remove_dir_all(folder);
        let (image, mounted) = (folder.join("xfs"), folder.join("mounted"));
        let make = || {
            std::fs::create_dir_all(&mounted)?;
            File::create(&image)?.set_len(DISK)
        };
        make().map_err(|e| at(folder, &e))?;
        let mut mkfs = Command::new("mkfs.xfs");
        mkfs.args(["-q", "-m", "reflink=1"]).arg(&image);
        run(mkfs, minutes(5), "look at free space")?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "xfs", "-o", "loop"]).arg(&image).arg(&mounted);
        run(
            mount,
            minutes(1),
            "mounting needs root and a free loop device; `--growth no` leaves this part out",
        )?;
        Ok(Self { folder: folder.to_owned(), mounted })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.arg(&self.mounted);
        match run(umount, minutes(5), "unmount it by hand") {
            Ok(()) => drop(std::fs::remove_dir_all(&self.folder)),
            Err(failure) => eprintln!("{failure}"),
        }
    }
}
