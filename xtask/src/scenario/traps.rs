//! Everything that is known to go wrong silently when a cloud is promoted, prepared at north; and what must have become of each at
//! south. Nothing is random here, and nobody writes meanwhile.

use std::path::Path;

use super::Options;
use super::children::{Running, output, wait_for};
use super::world::World;
use crate::failure::Failure;
use crate::lab;
use crate::step::minutes;

pub fn traps(root: &Path, options: &Options) -> Result<(), Failure> {
    let world = World::build(root, options)?;
    world.run(options, |world| play(world))
}

fn play(world: &World<'_>) -> Result<String, Failure> {
    let (north, south) = (&world.sites.north, &world.sites.south);
    let expected = world.folder.join("expected.json");
    let prepare = world.python("traps.py", |prepare| {
        prepare
            .env("OS_CLIENT_CONFIG_FILE", north.lab().join("clouds.yaml"))
            .env("OS_CLOUD", "north")
            .env("SITE_FOLDER", north.folder())
            .env("SHARE_FOLDER", north.share_mount())
            .env("SOCKET", north.mariadb_socket())
            .env("EXPECTED", &expected);
    });
    let mut traps = Running::start("the script with the traps", prepare, &world.folder.join("traps.log"))?;
    wait_for(&mut traps, |traps| traps.said().contains("ready"), minutes(5), "the last trap")?;
    world.say("the traps are set");
    let (code, said) = output(world.sites.command("north", &["replicate", "cloud"]), minutes(5), "")?;
    if !matches!(code, Some(0 | 3)) {
        return Err(Failure::new(format!("`farsite replicate` ended with {code:?}:\n{said}"), "see above"));
    }
    world.lab(&["destroy", "north"])?;
    traps.kill();
    let report = world.fail_over(&[])?;
    let verify = world.python("verify_traps.py", |verify| {
        verify
            .env("AUTH_URL", south.url(lab::site::KEYSTONE, "/v3"))
            .env("REGION", south.region())
            .env("ADMIN_PASSWORD", north.password("admin"))
            .env("SITE_FOLDER", south.folder())
            .env("SHARE_FOLDER", south.share_mount())
            .env("SOCKET", south.mariadb_socket())
            .env("REPORT", &report)
            .env("EXPECTED", &expected);
    });
    let (code, found) = output(verify, minutes(5), "")?;
    if code != Some(0) {
        return Err(Failure::new(
            format!("a trap has caught us:\n{found}"),
            "with --keep everything is left to look at",
        ));
    }
    Ok(found)
}
