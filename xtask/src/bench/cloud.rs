//! `cargo xtask bench cloud`: a site of the lab with many images and volumes: what a run without a change takes and asks of the
//! APIs, what agents ask at rest, and how long a failover takes, by step. Prints lines of Markdown.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::lab::site::Site;
use crate::scenario::children::{Running, output};
use crate::scenario::world::{World, at};
use crate::scenario::{Options, Storage, absolute};
use crate::step::{minutes, run};

pub const USAGE: &str = "\
usage: cargo xtask bench cloud [--images N] [--volumes N] [--volume-mib N] [--level data|application] [--cold] [--rest SECONDS]
                         [--debug] [--keep] [--folder DIR]

  --images N       of 1 MiB each (100)
  --volumes N      of 1 GiB each, sparse (300)
  --volume-mib N   contents of each volume (1)
  --level LEVEL    of the failover (application)
  --cold           nothing is hydrated before: all comes out of the store
  --rest SECONDS   how long both sites' agents are watched when nothing is asked of the cloud (130; 0: not at all)
  --debug          a debug build in place of a release
  --keep           leave everything as it is in the end
  --folder DIR     where all of it is (target/bench-cloud)
";

/// Runs without a change, of which the median counts.
const RUNS: usize = 3;

struct Fleet {
    images: u64,
    volumes: u64,
    volume_mib: u64,
    level: String,
    cold: bool,
    rest: Duration,
}

pub fn bench(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let (fleet, options) = parse(root, words)?;
    let world = World::build(root, &options)?;
    world.run(&options, |world| measure(world, &fleet))
}

fn measure(world: &World<'_>, fleet: &Fleet) -> Result<String, Failure> {
    let (north, south) = (&world.sites.north, &world.sites.south);
    let begun = Instant::now();
    let fill = world.python("fill.py", |fill| {
        fill.env("OS_CLIENT_CONFIG_FILE", north.lab().join("clouds.yaml"))
            .env("OS_CLOUD", "north")
            .env("SHARE_FOLDER", north.share_mount())
            .env("IMAGES", fleet.images.to_string())
            .env("VOLUMES", fleet.volumes.to_string())
            .env("VOLUME_MIB", fleet.volume_mib.to_string());
    });
    run(fill, minutes(60), "see above")?;
    world.say(&format!("north is filled, in {:.0} s", begun.elapsed().as_secs_f64()));

    let mut said = format!(
        "{} images of 1 MiB, {} volumes of 1 GiB with {} MiB in each\n\n| what | seconds | requests at north's APIs |\n| --- | --- | --- |\n",
        fleet.images, fleet.volumes, fleet.volume_mib
    );
    let mut row = |what: &str, (seconds, requests): (f64, usize)| {
        world.say(&format!("{what}: {seconds:.1} s, {requests} requests"));
        let _ = writeln!(said, "| {what} | {seconds:.1} | {requests} |");
    };
    let replicate = || timed(north, || call(world, "north", &["replicate", "cloud"]));
    row("first copy", replicate()?);
    let median = |mut all: Vec<(f64, usize)>| {
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all[all.len() / 2]
    };
    row("a run without a change", median((0..RUNS).map(|_| replicate()).collect::<Result<_, _>>()?));
    select_by_metadata(world)?;
    replicate()?;
    row(
        "the same, volumes selected by metadata",
        median((0..RUNS).map(|_| replicate()).collect::<Result<_, _>>()?),
    );
    row("farsite coverage", timed(north, || call(world, "north", &["coverage"]))?);

    if !fleet.rest.is_zero() {
        let (before, log) = (requests(south), |site: &str| world.folder.join(format!("{site}-agent.log")));
        let (_, at_north) = timed(north, || {
            let mut agents = Vec::new();
            for site in ["north", "south"] {
                agents.push(Running::start("an agent", world.sites.command(site, &["agent"]), &log(site))?);
            }
            sleep(fleet.rest);
            agents.iter_mut().try_for_each(Running::lives)
        })?;
        let at_south = requests(south) - before;
        let minutes = fleet.rest.as_secs_f64() / 60.0;
        let _ = writeln!(
            said,
            "\nBoth agents at rest, a point every {} s: {:.1} requests a minute at north, {:.1} at south.",
            world.every_s(),
            at_north as f64 / minutes,
            at_south as f64 / minutes
        );
    }
    if !fleet.cold {
        let (seconds, _) = timed(south, || call(world, "operator", &["hydrate", "cloud"]))?;
        world.say(&format!("south is hydrated, the last of it in {seconds:.1} s"));
    }
    world.lab(&["destroy", "north"])?;
    let report = world.fail_over_at(&fleet.level, &[])?;
    let text = fs::read_to_string(&report).map_err(|e| at(&report, &e))?;
    let _ = writeln!(
        said,
        "\nFailover at the level {}, {}: RTO {} s.",
        fleet.level,
        if fleet.cold { "out of the store" } else { "hydrated" },
        figure(&text, "rto_s").unwrap_or("-")
    );
    for (step, seconds) in steps(&text) {
        let _ = writeln!(said, "- {step}: {seconds}");
    }
    Ok(said)
}

/// One of Farsite's commands, which must end well or with a target missed.
fn call(world: &World<'_>, whose: &str, words: &[&str]) -> Result<(), Failure> {
    match output(world.sites.command(whose, words), minutes(60), "")? {
        (Some(0 | 3), _) => Ok(()),
        (code, said) => Err(Failure::new(
            format!("`farsite {}` ended with {code:?}:\n{said}", words.join(" ")),
            "see above",
        )),
    }
}

/// Seconds, and what HAProxy has let through to the APIs of a site meanwhile.
fn timed(site: &Site, what: impl FnOnce() -> Result<(), Failure>) -> Result<(f64, usize), Failure> {
    let (before, begun) = (requests(site), Instant::now());
    what()?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok((seconds, requests(site) - before))
}

/// Lines of HAProxy's log that are requests.
fn requests(site: &Site) -> usize {
    let log = fs::read_to_string(site.below("log/haproxy.out")).unwrap_or_default();
    log.lines().filter(|line| line.contains(" HTTP/1.")).count()
}

/// From now on Cinder is asked which volumes are meant: all of them.
fn select_by_metadata(world: &World<'_>) -> Result<(), Failure> {
    let policy = world.folder.join("keys/north/policies/cloud.yaml");
    let text = fs::read_to_string(&policy).map_err(|e| at(&policy, &e))?;
    let selected = text.replace("- cinder: { ", "- cinder: { select: { metadata: { dr: \"yes\" } }, ");
    fs::write(&policy, selected).map_err(|e| at(&policy, &e))
}

fn figure<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let rest = text.split_once(&format!("\"{name}\":"))?.1;
    rest.split([',', '\n', '}']).next().map(str::trim)
}

/// Names and seconds of the steps that were done, from a report in JSON with a field on each line.
fn steps(report: &str) -> Vec<(String, String)> {
    let mut steps = Vec::new();
    let mut id = String::new();
    let (_, report) = report.split_once("\"steps\": [").unwrap_or_default();
    for line in report.lines().map(str::trim) {
        let value = |name: &str| {
            let rest = line.strip_prefix(&format!("\"{name}\": "))?;
            Some(rest.trim_end_matches(',').trim_matches('"').to_owned())
        };
        if let Some(of) = value("id") {
            id = of;
        }
        let seconds = value("seconds").filter(|text| text.parse::<f64>().is_ok_and(|s| s > 0.05));
        if let Some(seconds) = seconds.filter(|_| !id.is_empty()) {
            steps.push((std::mem::take(&mut id), seconds));
        }
    }
    steps
}

fn parse(root: &Path, words: &[&str]) -> Result<(Fleet, Options), Failure> {
    let mut fleet = Fleet {
        images: 100,
        volumes: 300,
        volume_mib: 1,
        level: "application".to_owned(),
        cold: false,
        rest: Duration::from_secs(130),
    };
    let mut options = Options::new(root.join("target/bench-cloud"), Storage::Share);
    options.release = true;
    let wrong = |what: String| Failure::usage(what, USAGE);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().copied().ok_or_else(|| wrong(format!("`{word}` needs a value")));
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong(format!("`{text}` is no number")));
        match *word {
            "--images" => fleet.images = number(value()?)?,
            "--volumes" => fleet.volumes = number(value()?)?,
            "--volume-mib" => fleet.volume_mib = number(value()?)?.min(1024),
            "--level" => value()?.clone_into(&mut fleet.level),
            "--rest" => fleet.rest = Duration::from_secs(number(value()?)?),
            "--folder" => options.folder = absolute(value()?)?,
            "--cold" => fleet.cold = true,
            "--debug" => options.release = false,
            "--keep" => options.keep = true,
            _ => return Err(wrong(format!("not understood: `{word}`"))),
        }
    }
    Ok((fleet, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_took_time_are_read_out_of_a_report() {
        let report = "{\n \"rto_s\": 12.5,\n \"steps\": [\n {\n \"id\": \"a\",\n \"seconds\": 1.5\n },\n {\n \"id\": \"b\",\n \"seconds\": null\n },\n {\n \"id\": \"c\",\n \"seconds\": 2.0\n }\n ]\n}";
        assert_eq!(steps(report), [("a".to_owned(), "1.5".to_owned()), ("c".to_owned(), "2.0".to_owned())]);
        assert_eq!(figure(report, "rto_s"), Some("12.5"));
    }
}
