//! What users do with their volumes while Farsite holds versions of them succeeds as it does without, and nothing of ours is left
//! of what they deleted.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::children::{Running, output, wait_for};
use super::world::{World, at};
use super::{Options, Storage};
use crate::failure::Failure;
use crate::step::minutes;

/// What Cinder has deleted is left alone for an hour.
const AN_HOUR_LATER: Duration = Duration::from_secs(3700);

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
    // Deleted, and migrated away: the volume lives, and the image that it had does not.
    let (deleted, away) = gone.split_once("\"away\"").unwrap_or((gone, ""));
    let (left, deleted, away) = (ids(left), ids(deleted), ids(away));
    let mut problems = remains(world, &left, &(&deleted | &away))?;
    if world.sites.storage == Storage::Ceph {
        problems.extend(space_comes_back(world, &deleted, &away)?);
    }
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
            // For an hour what was deleted stays in the trash, whoever put it there; then later runs remove it.
            for line in rbd(world, &["trash", "ls", "volumes"])?.lines() {
                if !gone.iter().any(|id| line.contains(id.as_str())) {
                    problems.push(format!("in the trash there is {line}, which nobody deleted"));
                }
            }
            let mut held = BTreeSet::new();
            for line in
                rbd(world, &["ls", "--long", "volumes"])?.lines().filter(|line| line.contains("@farsite-"))
            {
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

/// What `rbd` says of north's cluster.
fn rbd(world: &World<'_>, words: &[&str]) -> Result<String, Failure> {
    let mut rbd = Command::new("rbd");
    rbd.arg("--conf").arg(world.sites.north.ceph_conf()).args(words);
    output(rbd, minutes(1), "").map(|(_, said)| said)
}

/// What was deleted takes room in the trash as long as our snapshots hold it. It is left alone for an hour; then the next run that
/// measures what is kept gives the room back.
fn space_comes_back(
    world: &World<'_>,
    deleted: &BTreeSet<String>,
    away: &BTreeSet<String>,
) -> Result<Vec<String>, Failure> {
    let trash = |later: Duration| {
        let script = world.python("trash.py", |script| {
            world.storage(script, &world.sites.north);
            script.env("LATER", later.as_secs().to_string());
        });
        match output(script, minutes(1), "")? {
            (Some(0), said) => Ok(said),
            (code, said) => {
                Err(Failure::new(format!("looking into the trash ended with {code:?}: {said}"), "see above"))
            }
        }
    };
    let mut problems = Vec::new();
    let before = trash(AN_HOUR_LATER)?;
    for id in deleted | away {
        if !before.contains(&format!("{id}\": ")) || before.contains(&format!("{id}\": 0")) {
            problems.push(format!("volume {id} takes no room in the trash, so nothing comes back: {before}"));
        }
    }
    // With a bound it is measured in each run, and every ten minutes without one.
    let policy = world.sites.policy_of("north");
    let text = fs::read_to_string(&policy).map_err(|e| at(&policy, &e))?;
    fs::write(&policy, text + "keep-versions: 4GiB\n").map_err(|e| at(&policy, &e))?;
    replicate(world)?;
    let after = trash(Duration::ZERO)?;
    for id in deleted.iter().filter(|id| after.contains(*id)) {
        problems
            .push(format!("an hour after its deletion volume {id} still takes room in the pool: {after}"));
    }
    // Cinder has a volume of that name, and whether it wants the image back is not for us to say: as docs/operator-guide.md tells.
    for id in away.iter().filter(|id| !after.contains(*id)) {
        problems.push(format!("the image of volume {id}, which migrated away, has left the trash: {after}"));
    }
    for line in rbd(world, &["trash", "ls", "volumes"])?.lines() {
        if let Some((id, _)) =
            line.split_once(' ').filter(|(_, name)| away.iter().any(|id| name.contains(id)))
        {
            rbd(world, &["snap", "purge", "--no-progress", "--pool", "volumes", "--image-id", id])?;
            rbd(world, &["trash", "rm", "--no-progress", &format!("volumes/{id}")])?;
        }
    }
    let in_the_end = trash(Duration::ZERO)?;
    if in_the_end.trim() != "{}" {
        problems.push(format!("what the guide tells to do does not free all of it: {in_the_end}"));
    }
    world.say(&format!(
        "objects in the trash, by image: {} and an hour later {}",
        before.trim(),
        after.trim()
    ));
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
