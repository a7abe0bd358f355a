//! What users do with their volumes while Farsite holds versions of them succeeds as it does without, and nothing of ours is left
//! of what they deleted.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::children::{Running, output, wait_for};
use super::world::{World, at};
use super::{Options, Storage};
use crate::failure::Failure;
use crate::step::minutes;

pub fn users(root: &Path, options: &Options) -> Result<(), Failure> {
    let world = World::build(root, options)?;
    world.run(options, play)
}

fn play(world: &World<'_>) -> Result<String, Failure> {
    let north = &world.sites.north;
    let (go, done) = (world.folder.join("go"), world.folder.join("done.json"));
    let script = world.python("users.py", |script| {
        script
            .env("OS_CLIENT_CONFIG_FILE", north.lab().join("clouds.yaml"))
            .env("OS_CLOUD", "north")
            .env("GO", &go)
            .env("DONE", &done);
        world.storage(script, north);
    });
    let log = world.folder.join("users.log");
    let mut users = Running::start("the users", script, &log)?;
    wait_for(&mut users, |users| users.said().contains("ready"), minutes(5), "the users' volumes")?;
    replicate(world)?;
    world.say("a recovery point is there, and versions of all volumes are held");
    fs::write(&go, "").map_err(|e| at(&go, &e))?;
    if !users.ended_well(minutes(9))? {
        return Err(Failure::new(
            format!("users were hindered:\n{}", users.said()),
            "with --keep everything is left to look at",
        ));
    }
    let said = users.said();
    world.say("users did all that they wanted");
    replicate(world)?;
    let done = fs::read_to_string(&done).map_err(|e| at(&done, &e))?;
    let (left, gone) = done.split_once("\"gone\"").unwrap_or((&done, ""));
    let (left, gone) = (ids(left), ids(gone));
    let problems = remains(world, &left, &gone)?;
    if problems.is_empty() {
        return Ok(said);
    }
    Err(Failure::new(problems.join("\n"), "with --keep everything is left to look at"))
}

fn replicate(world: &World<'_>) -> Result<(), Failure> {
    match output(world.sites.command("north", &["replicate", "cloud"]), minutes(5), "")? {
        (Some(0), _) => Ok(()),
        (code, said) => {
            Err(Failure::new(format!("`farsite replicate` ended with {code:?}:\n{said}"), "see above"))
        }
    }
}

/// What is left of volumes that are gone, and what the newest point does not have.
fn remains(
    world: &World<'_>,
    left: &BTreeSet<String>,
    gone: &BTreeSet<String>,
) -> Result<Vec<String>, Failure> {
    let mut problems = Vec::new();
    let (_, point) = output(world.sites.command("operator", &["points", "show", "latest"]), minutes(1), "")?;
    for id in left.iter().filter(|id| !point.contains(*id)) {
        problems.push(format!("the newest point does not have volume {id}"));
    }
    for id in gone.iter().filter(|id| point.contains(*id)) {
        problems.push(format!("the newest point still has volume {id}"));
    }
    match world.sites.storage {
        Storage::Share => {
            let share = world.sites.north.share_mount();
            let files = files_below(&share).map_err(|e| at(&share, &e))?;
            problems.extend(
                files
                    .iter()
                    .filter(|file| gone.iter().any(|id| file.contains(id.as_str())))
                    .map(|file| format!("{file} is left of a volume that is gone")),
            );
        }
        Storage::Ceph => {
            let rbd = |words: &[&str]| {
                let mut rbd = Command::new("rbd");
                rbd.arg("--conf").arg(world.sites.north.ceph_conf()).args(words);
                output(rbd, minutes(1), "").map(|(_, said)| said)
            };
            // For an hour what was deleted stays in the trash, whoever put it there; then later runs remove it.
            for line in rbd(&["trash", "ls", "volumes"])?.lines() {
                if !gone.iter().any(|id| line.contains(id.as_str())) {
                    problems.push(format!("in the trash there is {line}, which nobody deleted"));
                }
            }
            let mut held = BTreeSet::new();
            for line in rbd(&["ls", "--long", "volumes"])?.lines().filter(|line| line.contains("@farsite-")) {
                let name = line.split_whitespace().next().unwrap_or_default();
                let image = name.split('@').next().unwrap_or_default().to_owned();
                if !held.insert(image) {
                    problems.push(format!("{name} is one snapshot too many"));
                }
            }
            if held.is_empty() {
                problems.push("no snapshot of ours is there at all: nothing was tried".to_owned());
            }
        }
    }
    Ok(problems)
}

fn files_below(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    Ok(found)
}

/// Every UUID between quotes.
fn ids(text: &str) -> BTreeSet<String> {
    text.split('"')
        .filter(|word| word.len() == 36 && word.matches('-').count() == 4)
        .map(str::to_owned)
        .collect()
}
