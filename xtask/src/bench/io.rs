//! Ways of reading a file from its start to its end, by fio: as many requests at once as there are threads that each wait
//! for one, and as many as io_uring is given. A folder comes in; a table goes out.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use super::at;
use super::measure;
use super::volume::Random;
use crate::failure::Failure;
use crate::programs::{self, Program};

const MIB: u64 = 1 << 20;
/// What the pipeline asks for at once, and one block.
const REQUESTS_KIB: [u64; 2] = [1024, 64];

#[derive(Debug, Clone, Copy)]
enum Way {
    /// pread(2) by threads, which take turns along the file.
    Threads(u64),
    /// One thread that keeps so many requests under way.
    Uring(u64),
}

const WAYS: [Way; 5] = [Way::Threads(1), Way::Threads(2), Way::Threads(4), Way::Uring(8), Way::Uring(32)];

/// One way: bytes a second, and the processor's time for all of it.
#[derive(Debug, Clone, Copy)]
struct Read {
    mib_per_s: f64,
    cpu_s: f64,
}

pub fn measure(root: &Path, folder: &Path, size_mib: u64, runs: usize) -> Result<String, Failure> {
    programs::ensure(&root.join("xtask"), &[Program { name: "fio", package: "fio" }])?;
    let file = folder.join("dense");
    fill(&file, size_mib).map_err(|e| at(&file, &e))?;
    let mut out = String::from(
        "\n| requests | read by | past the page cache, MiB/s | processor, s | through it, MiB/s | processor, s |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for request_kib in REQUESTS_KIB {
        for way in WAYS {
            let mut cells = String::new();
            for direct in [true, false] {
                let mut turns = Vec::new();
                for _ in 0..runs {
                    turns.push(read(&file, size_mib, request_kib, way, direct, folder)?);
                }
                turns.sort_by(|a, b| a.mib_per_s.total_cmp(&b.mib_per_s));
                let Read { mib_per_s, cpu_s } = turns[turns.len() / 2];
                let _ = write!(cells, " {mib_per_s:.0} | {cpu_s:.2} |");
            }
            let _ = writeln!(out, "| {request_kib} KiB | {} |{cells}", way.title());
        }
    }
    std::fs::remove_file(&file).map_err(|e| at(&file, &e))?;
    Ok(out)
}

/// Without holes: nothing of them is read anyway.
fn fill(path: &Path, size_mib: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut bytes = vec![0; MIB as usize];
    for number in 0..size_mib {
        Random(number).fill(&mut bytes);
        file.write_all(&bytes)?;
    }
    file.sync_all()
}

fn read(
    file: &Path,
    size_mib: u64,
    request_kib: u64,
    way: Way,
    direct: bool,
    folder: &Path,
) -> Result<Read, Failure> {
    let figures = folder.join("fio");
    let mut fio = Command::new("fio");
    fio.args(["--name=read", "--readonly", "--thread", "--group_reporting"]);
    fio.args(["--output-format=terse", "--terse-version=3"]);
    fio.arg(format!("--output={}", figures.display())).arg(format!("--filename={}", file.display()));
    fio.arg(format!("--bs={request_kib}k")).arg(format!("--direct={}", u8::from(direct)));
    match way {
        Way::Threads(threads) => {
            // Thread n of N reads requests n, n + N, n + 2N …
            let over = (threads - 1) * request_kib;
            let order = if over == 0 { "read".to_owned() } else { format!("read:{over}k") };
            fio.arg("--ioengine=psync").arg(format!("--numjobs={threads}")).arg(format!("--rw={order}"));
            fio.arg(format!("--offset_increment={request_kib}k"));
            fio.arg(format!("--io_size={}k", size_mib * 1024 / threads));
        }
        Way::Uring(depth) => {
            fio.args(["--ioengine=io_uring", "--rw=read"]).arg(format!("--iodepth={depth}"));
        }
    }
    let measured = measure::run(fio, &[0], folder)?;
    let text = std::fs::read_to_string(&figures).map_err(|e| at(&figures, &e))?;
    let odd = |why: &str| Failure::new(format!("fio {why}: {text}"), "run fio by hand");
    // Terse version 3 (fio's HOWTO): the sixth field is what was read in KiB, the ninth the milliseconds that took.
    let line = text.lines().rfind(|line| line.starts_with("3;")).ok_or_else(|| odd("gave no figures"))?;
    let number = |index: usize| line.split(';').nth(index).and_then(|field| field.parse::<f64>().ok());
    let (Some(read_kib), Some(ms)) = (number(5), number(8)) else { return Err(odd("gave other figures")) };
    if read_kib < (size_mib * 1024) as f64 {
        return Err(odd("did not read all"));
    }
    Ok(Read { mib_per_s: read_kib / 1024.0 / (ms / 1000.0), cpu_s: measured.cpu_s })
}

impl Way {
    fn title(self) -> String {
        match self {
            Self::Threads(1) => "1 thread".to_owned(),
            Self::Threads(threads) => format!("{threads} threads"),
            Self::Uring(depth) => format!("io_uring, {depth} at once"),
        }
    }
}
