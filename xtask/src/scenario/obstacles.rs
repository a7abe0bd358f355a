//! Everything at the standby that would stop a failover, broken at once: the dry run has to find all of it before; the failover has
//! to stop at each with a sentence that names the cure, and go on after it.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::children::{all_output, output};
use super::world::{World, at};
use super::{Options, Storage};
use crate::failure::Failure;
use crate::lab::site::Site;
use crate::step::{minutes, run};

/// A revision that no release of Glance has.
const OTHER: &str = "1999_1_contract01";
const LOST: [&str; 8] = [
    "failover",
    "--site",
    "north",
    "--level",
    "application",
    "--assume-site-lost",
    "--reason",
    "the site was destroyed",
];

pub fn obstacles(root: &Path, options: &Options) -> Result<(), Failure> {
    let world = World::build(root, options)?;
    world.run(options, |world| play(world))
}

fn play(world: &World<'_>) -> Result<String, Failure> {
    cloud(world)?;
    encrypted(world)?;
    upgraded(world)?;
    let (code, said) =
        farsite(world, &[&LOST[..], &["--dry-run"]].concat(), &world.sites.north.lab().join("clouds.yaml"))?;
    if code != Some(0) {
        return Err(Failure::new(format!("the dry run finds what is not wrong:\n{said}"), "see above"));
    }
    world.say("the dry run is clear before anything is broken");
    world.lab(&["destroy", "north"])?;

    // One service down, a wrong password, another release, a missing key file, clouds.yaml wrong.
    world.lab(&["stop", "south", "rabbitmq"])?;
    let (secret, etc) = (world.sites.secret("db"), world.sites.north.etc());
    fs::write(&secret, "not-it").map_err(|e| at(&secret, &e))?;
    let own = revision(&world.sites.south, OTHER)?;
    let configuration = world.sites.configuration("operator");
    let right = fs::read_to_string(&configuration).map_err(|e| at(&configuration, &e))?;
    let keys = format!("{}/keystone/credential-keys", etc.display());
    let gone = format!("{}/keystone/gone-keys", etc.display());
    fs::write(&configuration, right.replace(&format!("{keys}: "), &format!("{gone}: ")))
        .map_err(|e| at(&configuration, &e))?;
    let clouds = world.folder.join("wrong-clouds.yaml");
    let text =
        fs::read_to_string(world.sites.north.lab().join("clouds.yaml")).map_err(|e| at(&clouds, &e))?;
    let wrong = text.replace(&world.sites.south.password("admin"), "not-it-either");
    fs::write(&clouds, wrong).map_err(|e| at(&clouds, &e))?;

    let is_ceph = world.sites.storage == Storage::Ceph;
    if is_ceph {
        world.lab(&["stop", "south", "ceph-mon"])?;
    }

    let (code, said) = farsite(world, &[&LOST[..], &["--dry-run"]].concat(), &clouds)?;
    let mut expected = vec![
        "the cloud south of south cannot be asked",
        "rabbitmq",
        "refuses the account glance",
        "glance-api.conf",
        OTHER,
        "gone-keys",
        "hint:",
    ];
    expected.extend(is_ceph.then_some("is the cluster well (`ceph -s`)"));
    let missed: Vec<&str> = expected.into_iter().filter(|words| !said.contains(words)).collect();
    if code != Some(1) || !missed.is_empty() || said.contains("not-it") {
        return Err(Failure::new(
            format!(
                "the dry run ended with {code:?} and says nothing of {missed:?}, or shows a password:\n{said}"
            ),
            "with --keep everything is left to look at",
        ));
    }
    world.say("the dry run finds all that is broken:");
    for line in said.lines().filter(|line| line.contains(['✗', '!'])) {
        eprintln!("    {}", line.trim());
    }

    let begin = [&LOST[..], &["--yes", "--on-failure", "stop"]].concat();
    let resume = ["failover", "--site", "north", "--resume", "--yes", "--on-failure", "stop"];
    stops_at(world, &begin, "check-standby", "rabbitmq")?;
    world.lab(&["start", "south", "rabbitmq"])?;
    stops_at(world, &resume, "check-site", "refuses the account")?;
    fs::write(&secret, world.sites.south.password("db")).map_err(|e| at(&secret, &e))?;
    if is_ceph {
        stops_at(world, &resume, "restore-volumes", "ceph -s")?;
        world.lab(&["start", "south", "ceph-mon"])?;
    }
    stops_at(world, &resume, "install-files", "gone-keys")?;
    fs::write(&configuration, right).map_err(|e| at(&configuration, &e))?;
    stops_at(world, &resume, "check-release", OTHER)?;
    // What Glance's own db sync would come to, were there a release of this revision.
    revision(&world.sites.south, OTHER)?;
    let (code, said) = farsite(world, &resume, &clouds)?;
    if !matches!(code, Some(0 | 3)) {
        return Err(Failure::new(format!("the last resume ended with {code:?}:\n{said}"), "see above"));
    }
    world.lab(&["status", "south"])?;
    Ok(format!("south is promoted, past everything that stood in the way (Glance's schema was at {own})"))
}

/// One point.
fn replicate(world: &World<'_>) -> Result<(), Failure> {
    let (code, said) = output(world.sites.command("north", &["replicate", "cloud"]), minutes(5), "")?;
    if !matches!(code, Some(0 | 3)) {
        return Err(Failure::new(format!("`farsite replicate` ended with {code:?}:\n{said}"), "see above"));
    }
    Ok(())
}

/// A volume that nobody could read is found until its key is in the point.
fn encrypted(world: &World<'_>) -> Result<(), Failure> {
    let clouds = world.sites.north.lab().join("clouds.yaml");
    let script = world.python("encrypted.py", |script| {
        let backend = if world.sites.storage == Storage::Ceph { "ceph" } else { "nfs" };
        script.env("OS_CLIENT_CONFIG_FILE", &clouds).env("OS_CLOUD", "north").env("BACKEND", backend);
    });
    let (Some(0), id) = output(script, minutes(2), "")? else {
        return Err(Failure::new("no encrypted volume could be made", "see above"));
    };
    let id = id.trim();
    replicate(world)?;
    let (_, coverage) = all_output(&world.sites.command("north", &["coverage"]), minutes(1), "")?;
    let (code, said) = farsite(world, &[&LOST[..], &["--dry-run"]].concat(), &clouds)?;
    let why = format!("nobody could read volume-{id}: encrypted by Cinder");
    if code != Some(1) || !said.contains(&why) || !coverage.contains("it is encrypted with") {
        return Err(Failure::new(
            format!("an encrypted volume without its key is not found ({code:?}):\n{said}\n{coverage}"),
            "with --keep everything is left to look at",
        ));
    }
    world
        .say(&format!("found: {}", said.lines().find(|line| line.contains(&why)).unwrap_or_default().trim()));
    let policy = world.sites.policy_of("north");
    let text = fs::read_to_string(&policy).map_err(|e| at(&policy, &e))?;
    let conf = world.sites.north.etc().join("cinder/cinder.conf");
    let keys = format!("  - files: {{ name: cinder, paths: [{}] }}\nretention:", conf.display());
    let named = text.replace("  - cinder: { ", "  - cinder: { encryption-keys: [files/cinder], ");
    fs::write(&policy, named.replace("retention:", &keys)).map_err(|e| at(&policy, &e))?;
    replicate(world)
}

/// North is upgraded behind its base: the next point tells.
fn upgraded(world: &World<'_>) -> Result<(), Failure> {
    let before = revision(&world.sites.north, OTHER)?;
    replicate(world)?;
    let clouds = world.sites.north.lab().join("clouds.yaml");
    let (code, said) = farsite(world, &[&LOST[..], &["--dry-run"]].concat(), &clouds)?;
    if code != Some(1) || !said.contains(&format!("north's glance is at revision {OTHER}")) {
        return Err(Failure::new(
            format!("an upgrade of north between two points is not seen ({code:?}):\n{said}"),
            "with --keep everything is left to look at",
        ));
    }
    revision(&world.sites.north, &before)?;
    replicate(world)?;
    world.say("an upgrade of north between two points was seen");
    Ok(())
}

fn farsite(world: &World<'_>, words: &[&str], clouds: &Path) -> Result<(Option<i32>, String), Failure> {
    let mut command = world.sites.command("operator", words);
    command.env("OS_CLIENT_CONFIG_FILE", clouds);
    all_output(&command, minutes(8), "")
}

fn stops_at(world: &World<'_>, words: &[&str], step: &str, why: &str) -> Result<(), Failure> {
    let (code, said) = farsite(world, words, &world.sites.north.lab().join("clouds.yaml"))?;
    let told = said.lines().find(|line| line.contains(&format!("step {step}:")));
    let Some(told) = told.filter(|_| code == Some(1) && said.contains(why) && said.contains("hint")) else {
        return Err(Failure::new(
            format!("it should have stopped at {step} with {why:?} and ended with {code:?}:\n{said}"),
            "with --keep everything is left to look at",
        ));
    };
    world.say(&format!("stopped: {}", told.trim()));
    Ok(())
}

/// Names south's cloud where the operator is.
fn cloud(world: &World<'_>) -> Result<(), Failure> {
    let path = world.sites.configuration("operator");
    let text = fs::read_to_string(&path).map_err(|e| at(&path, &e))?;
    let named = text.replace("south: {}", "south: { cloud: south, region: RegionSouth }");
    if named == text {
        return Err(Failure::new(
            format!("{} has no `south: {{}}`", path.display()),
            "how are sites written now?",
        ));
    }
    fs::write(&path, named).map_err(|e| at(&path, &e))
}

/// Glance's revision at a site is said to be another one; the one that it had.
fn revision(site: &Site, other: &str) -> Result<String, Failure> {
    let sql = |sql: String| {
        let mut client = Command::new("mariadb");
        client.args(["--no-defaults", "-N", "-B", "-S"]).arg(site.mariadb_socket());
        client.args(["-e", &sql]);
        client
    };
    let asked = sql("SELECT version_num FROM glance.alembic_version".to_owned());
    let (_, before) = output(asked, minutes(1), "does MariaDB run there?")?;
    run(sql(format!("UPDATE glance.alembic_version SET version_num = '{other}'")), minutes(1), "see above")?;
    Ok(before.trim().to_owned())
}
