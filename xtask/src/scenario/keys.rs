//! Keystone's credential keys are rotated twice after a recovery point was taken: the point's files open nothing of what the
//! database's log brings later. That must be found before any service starts, and the point itself must still be good.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::Options;
use super::children::{Running, all_output, output, wait_for};
use super::world::{World, at};
use crate::failure::Failure;
use crate::lab::site;
use crate::step::minutes;

/// Until a log that is shipped every second has brought everything.
const LOG_SHIPS: Duration = Duration::from_secs(8);

pub fn keys(root: &Path, options: &Options) -> Result<(), Failure> {
    let world = World::build(root, options)?;
    world.run(options, play)
}

fn play(world: &World<'_>) -> Result<String, Failure> {
    let (north, south) = (&world.sites.north, &world.sites.south);
    let (go, done) = (world.folder.join("go"), world.folder.join("done.json"));
    let script = world.python("keys.py", |script| {
        script
            .env("OS_CLIENT_CONFIG_FILE", north.lab().join("clouds.yaml"))
            .env("OS_CLOUD", "north")
            .env("KEYSTONE_CONF", north.etc().join("keystone/keystone.conf"))
            .env("GO", &go)
            .env("DONE", &done);
    });
    let mut script = Running::start("the script with the keys", script, &world.folder.join("keys.log"))?;
    wait_for(&mut script, |script| script.said().contains("ready"), minutes(2), "the first credential")?;
    let log = world.folder.join("north-agent.log");
    let mut agent = Running::start("an agent", world.sites.command("north", &["agent"]), &log)?;
    let is_committed = |agent: &Running| agent.said().contains("recovery point committed");
    wait_for(&mut agent, is_committed, minutes(5), "the recovery point")?;
    fs::write(&go, "").map_err(|e| at(&go, &e))?;
    if !script.ended_well(minutes(3))? {
        return Err(Failure::new(format!("the keys could not be rotated:\n{}", script.said()), "see above"));
    }
    sleep(LOG_SHIPS);
    agent.lives()?;
    agent.kill();
    world.lab(&["destroy", "north"])?;
    world.say("keys were rotated twice, the log is there, and north is no more");

    let lost = ["failover", "--site", "north", "--level", "application", "--assume-site-lost", "--yes"];
    let why = ["--reason", "the site was destroyed", "--on-failure", "stop", "--point", "latest-log"];
    let words = [&lost[..], &why].concat();
    let (code, said) = all(world, &words)?;
    let found = "credentials are encrypted with a key that";
    if code == Some(0) || !said.contains(found) || !said.contains("--point latest") {
        return Err(Failure::new(
            format!(
                "a database newer than its keys was promoted, or nobody is told what to do: {code:?}\n{said}"
            ),
            "with --keep everything is left to look at",
        ));
    }
    world.say("the failover to the end of the log stops, and says why");
    let words = ["promotion", "cancel", "--yes", "--reason", "the keys are older than the log"];
    let (code, said) = all(world, &words)?;
    if code != Some(0) {
        return Err(Failure::new(format!("cancelling ended with {code:?}:\n{said}"), "see above"));
    }
    world.fail_over(&[])?;
    let verify = world.python("keys.py", |verify| {
        verify
            .env("AUTH_URL", south.url(site::KEYSTONE, "/v3"))
            .env("REGION", south.region())
            .env("ADMIN_PASSWORD", north.password("admin"))
            .env("SECRETS", &done);
    });
    match output(verify, minutes(2), "")? {
        (Some(0), said) => Ok(said),
        (code, said) => Err(Failure::new(
            format!("the promoted site is not what the point holds ({code:?}): {said}"),
            "with --keep everything is left to look at",
        )),
    }
}

/// What a command of the operator's ended with, and all that it said.
fn all(world: &World<'_>, words: &[&str]) -> Result<(Option<i32>, String), Failure> {
    all_output(&world.sites.command("operator", words), minutes(5), "")
}
