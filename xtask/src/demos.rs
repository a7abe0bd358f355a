//! The demo again and again with other seeds: what it reported, what was truly lost, how long the promotion took. A number
//! of runs comes in; the rows of `docs/benchmarks.md` go out. A run that loses more than it reported fails this.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::step::{minutes, run};

/// Seconds of one run.
struct Figures {
    reported: f64,
    lost: f64,
    rto: f64,
}

pub fn demos(root: &Path, runs: u32) -> Result<(), Failure> {
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--package", "farsite"]).current_dir(root);
    run(build, minutes(60), "cargo says above what is wrong")?;
    println!(
        "| database | runs | reported RPO, s (least / median / most) | true loss, s | reported minus true, least | RTO, s |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for database in ["mariadb", "sqlite"] {
        let mut all = Vec::new();
        for seed in 1..=runs {
            eprintln!("== farsite demo --database {database} --seed {seed}");
            all.push(one(root, database, seed)?);
        }
        let spread = |value: fn(&Figures) -> f64| {
            let mut values: Vec<f64> = all.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            let [least, median, most] = [0, values.len() / 2, values.len() - 1].map(|i| values[i]);
            format!("{least:.1} / {median:.1} / {most:.1}")
        };
        let margin = all.iter().map(|f| f.reported - f.lost).fold(f64::INFINITY, f64::min);
        println!(
            "| {database} | {runs} | {} | {} | {margin:.1} | {} |",
            spread(|f| f.reported),
            spread(|f| f.lost),
            spread(|f| f.rto)
        );
    }
    Ok(())
}

fn one(root: &Path, database: &str, seed: u32) -> Result<Figures, Failure> {
    let failed = |why: String| {
        Failure::new(format!("demo of {database} with seed {seed}: {why}"), "run it alone to see all it says")
    };
    let output = Command::new("timeout")
        .args(["--kill-after=5", "180"])
        .arg(root.join("target/release/farsite"))
        .args(["demo", "--database", database, "--seed", &seed.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(failed(format!("{}: {}", output.status, text.lines().last().unwrap_or(""))));
    }
    read(&text).ok_or_else(|| failed("its figures were not found in what it printed".to_owned()))
}

/// `RPO: 0.5s to 4.5s, headline 4.5s, target 20s met; true loss 4.2s` and `RTO: 1.4s, …`
fn read(text: &str) -> Option<Figures> {
    let line = |start: &str| text.lines().find(|line| line.starts_with(start));
    let seconds = |line: &str, before: &str| -> Option<f64> {
        let rest = line.split_once(before)?.1;
        rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.parse().ok()
    };
    let rpo = line("RPO: ")?;
    Some(Figures {
        reported: seconds(rpo, "headline ")?,
        lost: seconds(rpo, "true loss ")?,
        rto: seconds(line("RTO: ")?, "RTO: ")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demos_figures_are_read_from_what_it_prints() {
        let text =
            "x\nRPO: 0.5s to 4.5s, headline 4.5s, target 20s met; true loss 4.2s\nRTO: 1.4s, target 2m met\n";
        let figures = read(text).unwrap();
        assert!((figures.reported - 4.5).abs() < 1e-9 && (figures.lost - 4.2).abs() < 1e-9);
        assert!((figures.rto - 1.4).abs() < 1e-9);
        assert!(read("nothing").is_none());
    }
}
