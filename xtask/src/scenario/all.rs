//! Every scenario, one after the other, as a night has the time for: one that fails does not keep the others from being played.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::tree::tree;
use super::{Options, USAGE};
use crate::failure::Failure;
use crate::lab;
use crate::step::wait;

/// Each as it is typed: on a share, then what there is on Ceph.
const ALL: [&[&str]; 9] = [
    &["disaster", "--drill"],
    &["traps"],
    &["obstacles"],
    &["users"],
    &["keys"],
    &["guide"],
    &["disaster", "--ceph", "--drill"],
    &["obstacles", "--ceph"],
    &["users", "--ceph"],
];
/// Building Farsite and installing what is missing included.
const LIMIT: Duration = Duration::from_hours(1);
/// What is told of a failure at once; the rest is in its log.
const LAST_LINES: usize = 15;

pub fn all(root: &Path, options: &Options, words: &[&str]) -> Result<(), Failure> {
    if let Some(word) = words.iter().find(|word| ["--keep", "--ceph", "--drill", "--seeds"].contains(*word)) {
        return Err(Failure::usage(format!("`{word}` is of a single scenario"), USAGE));
    }
    let logs = root.join("target/scenario-all");
    let fail = |e: std::io::Error| {
        Failure::new(format!("{}: {e}", logs.display()), "look at rights and free space there")
    };
    fs::create_dir_all(&logs).map_err(fail)?;
    let xtask = std::env::current_exe().map_err(fail)?;
    let of = tree(root)?;
    eprintln!("{} scenarios of {of}; their logs are in {}", ALL.len(), logs.display());
    let mut failed = Vec::new();
    for scenario in ALL {
        let (name, begun) = (scenario.join(" "), Instant::now());
        let log = logs.join(format!("{}.log", scenario.concat()));
        let said = fs::File::create(&log).map_err(fail)?;
        let mut one = Command::new(&xtask);
        one.arg("scenario").args(scenario).arg("--folder").arg(&options.folder).stdin(Stdio::null());
        one.args(options.release.then_some("--release"));
        // The others count on pauses of their own.
        if scenario[0] == "disaster" {
            one.args(["--seed", &options.seed.to_string(), "--every", &options.every_s.to_string()]);
        }
        one.stdout(said.try_clone().map_err(fail)?).stderr(said);
        let ended = wait(&mut one.spawn().map_err(fail)?, LIMIT).map_err(fail)?;
        let result = match ended {
            Some(status) if status.success() => "ok",
            Some(_) => "FAILED",
            None => "STOPPED",
        };
        println!("{result:8} {:5} s  {name}", begun.elapsed().as_secs());
        if result != "ok" {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
                eprintln!("    {line}");
            }
            failed.push(name);
        }
        if result == "STOPPED" {
            // It did not live to take its sites down.
            let sites = options.folder.join("lab").display().to_string();
            lab::lab(root, &["down", "--purge", "--folder", &sites])?;
        }
    }
    let mut problems = Vec::new();
    if !failed.is_empty() {
        problems.push(format!(
            "{} of {} scenarios did not pass: {}",
            failed.len(),
            ALL.len(),
            failed.join(", ")
        ));
    }
    if tree(root)? != of {
        problems.push("the source was changed meanwhile: of what these results are is not known".to_owned());
    }
    if problems.is_empty() {
        return Ok(());
    }
    let what = problems.join("; ");
    Err(Failure::new(
        what,
        format!("their logs are in {}; --keep with one alone leaves everything", logs.display()),
    ))
}
