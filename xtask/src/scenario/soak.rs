//! The scenario again and again with other seeds. Each seed's result is a line in a file, so that a soak that was cut off goes on
//! where it was.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Options, Storage};
use crate::failure::Failure;

/// What a seed's line says behind its number.
const HEADER: &str = "seed\tresult\treported_rpo_s\ttrue_loss_s\trto_s\n";

pub fn soak(root: &Path, seeds: u64, options: &Options) -> Result<(), Failure> {
    let folder = root.join("target/soak");
    let storage = match options.storage {
        Storage::Ceph => "ceph",
        Storage::Share => "share",
    };
    let file = folder.join(format!("disaster-{storage}.tsv"));
    let fail = |e: std::io::Error| {
        Failure::new(format!("{}: {e}", file.display()), "look at rights and space there")
    };
    fs::create_dir_all(&folder).map_err(fail)?;
    let mut done = fs::read_to_string(&file).unwrap_or_else(|_| HEADER.to_owned());
    let xtask = std::env::current_exe().map_err(fail)?;
    for seed in 1..=seeds {
        if done.lines().any(|line| line.starts_with(&format!("{seed}\tok"))) {
            continue;
        }
        let log = folder.join(format!("{storage}-{seed}.log"));
        let said = fs::File::create(&log).map_err(fail)?;
        eprintln!("== seed {seed} of {seeds}; its log is {}", log.display());
        let mut one = Command::new(&xtask);
        one.args([
            "scenario",
            "disaster",
            "--seed",
            &seed.to_string(),
            "--every",
            &options.every_s.to_string(),
        ]);
        one.arg("--folder").arg(&options.folder);
        for (wanted, word) in [
            (options.storage == Storage::Ceph, "--ceph"),
            (options.release, "--release"),
            (options.drill, "--drill"),
        ] {
            one.args(wanted.then_some(word));
        }
        let output = one.stdin(Stdio::null()).stderr(said).output().map_err(fail)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        fs::File::options()
            .append(true)
            .open(&log)
            .and_then(|mut log| log.write_all(text.as_bytes()))
            .map_err(fail)?;
        let mut line = format!("{seed}\t{}", if output.status.success() { "ok" } else { "FAILED" });
        for figure in ["reported_rpo_s", "true_loss_s", "rto_s"] {
            let _ = write!(line, "\t{}", figure_of(&text, figure).unwrap_or("-"));
        }
        eprintln!("   {line}");
        let others: Vec<&str> =
            done.lines().filter(|other| !other.starts_with(&format!("{seed}\t"))).collect();
        done = others.join("\n") + "\n" + &line + "\n";
        let partial = file.with_extension("new");
        fs::write(&partial, &done).and_then(|()| fs::rename(&partial, &file)).map_err(fail)?;
    }
    print!("{done}");
    match done.lines().filter(|line| line.contains("\tFAILED")).count() {
        0 => Ok(()),
        n => {
            Err(Failure::new(format!("{n} seeds failed"), format!("their logs are in {}", folder.display())))
        }
    }
}

/// `"rto_s": 20.1,` in what a scenario printed.
fn figure_of<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let rest = text.split_once(&format!("\"{name}\": "))?.1;
    rest.split([',', '\n']).next().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_by_its_name() {
        let text = "{\n  \"reported_rpo_s\": 14.4,\n  \"rto_s\": 20.1\n}";
        assert_eq!(
            (figure_of(text, "reported_rpo_s"), figure_of(text, "rto_s")),
            (Some("14.4"), Some("20.1"))
        );
        assert_eq!(figure_of(text, "true_loss_s"), None);
    }
}
