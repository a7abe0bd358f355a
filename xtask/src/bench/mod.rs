//! `cargo xtask bench data-plane`: the same volume through Farsite and its peers, side by side, on this machine: bytes at the
//! store, wall and processor time, peak memory, and ratios to the best peer, to the ideal bytes, and to what this machine
//! can do at all. Prints the tables of `docs/benchmarks.md`.

mod ceph;
pub mod cloud;
mod daemon;
mod farsite;
mod growth;
mod io;
mod limits;
mod measure;
mod peers;
mod table;
mod tracked;
mod volume;

use std::path::{Path, PathBuf};
use std::process::Command;

use self::measure::Measured;
use self::table::{Row, Table};
use crate::failure::Failure;
use crate::programs::{self, Program};
use crate::step::{minutes, run};

pub const USAGE: &str = "\
usage: cargo xtask bench data-plane [--size MIB] [--runs N] [--peers NAMES|none] [--tracked yes|no] [--io yes|no]
                              [--growth yes|no] [--folder DIR]

  --size MIB      size of the volume (2048): 40 % holes, 30 % incompressible, 30 % like files
  --runs N        counted runs of each row (3); what is printed is the median
  --peers NAMES   restic,borg,casync by default; rustic and bupstash are built with `cargo install`, which takes long
  --tracked no    leaves out the runs with change tracking: RBD images in a Ceph cluster made for this, and qcow2 images
  --io no         leaves out the ways of reading a file, by fio
  --growth no     leaves out the sparse volumes of up to 1 TiB, for which an XFS is mounted as root
  --folder DIR    where volume and stores lie (target/bench); needs about six times the size
";

/// What was asked for.
struct Options {
    size_mib: u64,
    runs: usize,
    peers: Vec<String>,
    tracked: bool,
    io: bool,
    growth: bool,
    folder: PathBuf,
}

/// A program under test. A store is made fresh for every series of rows.
trait Tool {
    fn name(&self) -> &str;
    /// Makes an empty store; not measured.
    fn init(&mut self) -> Result<(), Failure>;
    fn backup(&self) -> Command;
    /// Into a file that is not there.
    fn restore(&self, to: &Path) -> Command;
    /// Into a copy of an older version; `None` where the program cannot.
    fn restore_into(&self, to: &Path) -> Option<Command>;
    fn check(&self) -> Command;
    /// Brings the standby's own copy to what was backed up last; `None` where the program keeps none.
    fn hydrate(&self) -> Option<Command> {
        None
    }
    /// Where its store lies.
    fn store(&self) -> &Path;
    /// The exit codes of a good run.
    fn good(&self) -> &[i32] {
        &[0]
    }
}

pub fn bench(root: &Path, args: &[&str]) -> Result<(), Failure> {
    let options = parse(root, args)?;
    let time = [Program { name: "time", package: "time" }];
    programs::ensure(&root.join("xtask"), &time)?;
    let mut build = Command::new("cargo");
    build.args([
        "build",
        "--release",
        "--package",
        "farsite",
        "--package",
        "farsite-store",
        "--example",
        "limits",
    ]);
    build.arg("--bin").arg("farsite").current_dir(root);
    run(build, minutes(90), "cargo says above what is wrong")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let release = target.join("release");
    fresh(&options.folder)?;
    let volume = options.folder.join("source/volume");
    let own = release.join("farsite");
    let mut tools: Vec<Box<dyn Tool>> = vec![
        Box::new(farsite::Farsite::new(&own, &options.folder, &volume)),
        Box::new(farsite::Farsite::adaptive(&own, &options.folder, &volume)),
    ];
    tools.extend(peers::installed(root, &options.peers, &options.folder, &volume)?);

    let mut table = Table::default();
    for turn in 0..options.runs {
        eprintln!("== run {} of {}", turn + 1, options.runs);
        one_turn(&options, &volume, &mut tools, &mut table)?;
    }
    let limits = limits::measure(&release.join("examples/limits"), &options.folder, &volume)?;
    print!("{}", table.print(&limits));
    let (folder, runs) = (&options.folder, options.runs);
    if options.tracked {
        print!("{}", tracked::measure(root, &own, folder, options.size_mib, runs)?);
    }
    if options.io {
        print!("{}", io::measure(root, folder, options.size_mib, runs)?);
    }
    if options.growth {
        print!("{}", growth::measure(root, &own, folder, runs)?);
    }
    Ok(())
}

/// Every row once, for every tool; the tools take turns within a row, so that a machine that gets slower does so for all.
fn one_turn(
    options: &Options,
    volume: &Path,
    tools: &mut [Box<dyn Tool>],
    table: &mut Table,
) -> Result<(), Failure> {
    volume::create(volume, options.size_mib)?;
    let first = volume.with_extension("first");
    copy(volume, &first)?;
    for tool in tools.iter_mut() {
        tool.init()?;
    }
    let mut ideal = volume::Ideal::first(options.size_mib);
    for row in [Row::First, Row::NoChange, Row::Pages, Row::Sequential, Row::Database] {
        if let Some(change) = row.change() {
            ideal = volume::change(volume, change)?;
        }
        for tool in tools.iter() {
            let measured = measure::backup(tool.backup(), tool.good(), &options.folder, tool.store())?;
            table.add(row, tool.name(), &measured);
            let Some(hydrate) = tool.hydrate().filter(|_| [Row::First, Row::Pages].contains(&row)) else {
                continue;
            };
            let measured = measure::run(hydrate, tool.good(), &options.folder)?;
            // The first time it is a restore.
            if row == Row::Pages {
                table.add(Row::Hydrate, tool.name(), &measured);
            }
        }
        table.ideal(row, ideal.bytes);
    }
    for tool in tools.iter() {
        let to = options.folder.join("restored");
        let _ = std::fs::remove_file(&to);
        let measured = measure::run(tool.restore(&to), tool.good(), &options.folder)?;
        same(volume, &to, tool.name())?;
        table.add(Row::Restore, tool.name(), &measured);
        let measured: Option<Measured> = {
            copy(&first, &to)?;
            tool.restore_into(&to)
                .map(|command| measure::run(command, tool.good(), &options.folder))
                .transpose()?
        };
        if let Some(measured) = measured {
            same(volume, &to, tool.name())?;
            table.add(Row::RestoreInto, tool.name(), &measured);
        }
        let measured = measure::run(tool.check(), tool.good(), &options.folder)?;
        table.add(Row::Check, tool.name(), &measured);
    }
    Ok(())
}

fn parse(root: &Path, args: &[&str]) -> Result<Options, Failure> {
    let mut options = Options {
        size_mib: 2048,
        runs: 3,
        peers: ["restic", "borg", "casync"].map(str::to_owned).to_vec(),
        tracked: true,
        io: true,
        growth: true,
        folder: root.join("target/bench"),
    };
    let wrong = |what: String| Failure::usage(what, USAGE);
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| wrong(format!("`{word}` needs a value")))?;
        let number = || value.parse::<u64>().ok().filter(|n| *n > 0);
        match *word {
            "--size" => options.size_mib = number().ok_or_else(|| wrong(format!("`{value}` is no size")))?,
            "--runs" => {
                options.runs = number().ok_or_else(|| wrong(format!("`{value}` is no number")))? as usize;
            }
            "--peers" if *value == "none" => options.peers.clear(),
            "--peers" => options.peers = value.split(',').map(str::to_owned).collect(),
            "--tracked" => options.tracked = *value != "no",
            "--io" => options.io = *value != "no",
            "--growth" => options.growth = *value != "no",
            "--folder" => options.folder = PathBuf::from(value),
            _ => return Err(wrong(format!("not understood: `{word}`"))),
        }
    }
    Ok(options)
}

fn fresh(folder: &Path) -> Result<(), Failure> {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder.join("source")).map_err(|e| at(folder, &e))
}

fn at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        format!("{}: {error}", path.display()),
        "look at rights and free space there, then run again",
    )
}

/// A copy that keeps holes.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let mut cp = Command::new("cp");
    cp.args(["--sparse=always", "--"]).arg(from).arg(to);
    run(cp, minutes(10), "look at free space")
}

fn same(a: &Path, b: &Path, tool: &str) -> Result<(), Failure> {
    let mut cmp = Command::new("cmp");
    cmp.arg("--").arg(a).arg(b);
    run(cmp, minutes(10), &format!("{tool} did not give back what it was given: this is no speed to compare"))
}
