//! The scenario that decides: a living cloud is lost at a random moment, and its standby must answer for everything that it
//! had acknowledged.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::children::{Running, output, wait_for};
use super::world::World;
use super::{Options, Storage};
use crate::failure::Failure;
use crate::lab;
use crate::lab::site::Site;
use crate::step::minutes;

/// Until the first recovery point is there.
const FIRST_POINT: Duration = Duration::from_mins(5);

pub fn disaster(root: &Path, options: &Options) -> Result<(), Failure> {
    let world = World::build(root, options)?;
    world.run(options, |world| play(world, options))?;
    world.say("everything that north had acknowledged by the moment recovered to is there");
    Ok(())
}

fn play(world: &World<'_>, options: &Options) -> Result<String, Failure> {
    let (north, south) = (&world.sites.north, &world.sites.south);
    let promises = world.folder.join("promises.jsonl");
    let load = world.python("load.py", |load| {
        load.env("OS_CLIENT_CONFIG_FILE", north.lab().join("clouds.yaml"))
            .env("OS_CLOUD", "north")
            .env("PROMISES", &promises)
            .env("SEED", options.seed.to_string());
        world.storage(load, north);
    });
    let mut clients = Running::start("north's clients", load, &world.folder.join("clients.log"))?;
    let are_ready = |clients: &Running| clients.said().contains("ready");
    wait_for(&mut clients, are_ready, minutes(2), "the clients' first writes")?;
    world.say("clients are at work");
    let agent = |site: &str| {
        let log = world.folder.join(format!("{site}-agent.log"));
        Running::start("an agent", world.sites.command(site, &["agent"]), &log)
    };
    let mut source = agent("north")?;
    let mut standby = agent("south")?;
    let has_point = |_: &Running| {
        let list = output(world.sites.command("south", &["points", "list"]), minutes(1), "");
        list.is_ok_and(|(_, text)| text.lines().any(|line| line.contains("cloud")))
    };
    wait_for(&mut source, has_point, FIRST_POINT, "the first recovery point")?;
    if options.drill {
        drill(world, &clients)?;
    }
    let left = Duration::from_secs(5) + seeded(options.seed, options.every_s);
    world.say(&format!("disaster strikes in {:.1} s", left.as_secs_f64()));
    let strikes = Instant::now() + left;
    while Instant::now() < strikes {
        sleep(Duration::from_millis(200));
        clients.lives()?;
        source.lives()?;
        standby.lives()?;
    }
    let struck = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    source.kill();
    world.lab(&["destroy", "north"])?;
    clients.kill();
    world.say("north is no more");

    let report = world.fail_over(&[])?;
    let verify = world.python("verify.py", |verify| {
        verify
            .env("AUTH_URL", south.url(lab::site::KEYSTONE, "/v3"))
            .env("REGION", south.region())
            .env("ADMIN_PASSWORD", north.password("admin"))
            .env("PROMISES", &promises)
            .env("REPORT", &report)
            .env("DISASTER", format!("{:.3}", struck.as_secs_f64()))
            .env("NAMES", names(north))
            .env("SITE_FOLDER", south.folder())
            .env("SOCKET", south.mariadb_socket());
        world.storage(verify, south);
    });
    let (code, figures) = output(verify, minutes(5), "")?;
    if code != Some(0) {
        return Err(Failure::new(
            format!("south does not answer for what north had acknowledged:\n{figures}"),
            format!("seed {}; with --keep everything is left to look at", options.seed),
        ));
    }
    Ok(figures)
}

/// Everything by which something could refer to a site, `KIND=NAME`, the more exact names first.
fn names(site: &Site) -> String {
    let passwords = ["admin", "service", "db", "mq"].map(|of| format!("password={}", site.password(of)));
    let more = [
        format!("share={}", site.share()),
        format!("folder={}", site.folder().display()),
        format!("address={}", site.address()),
        format!("region={}", site.region()),
        format!("host={}", site.cinder_host()),
        format!("cluster={}", site.ceph_fsid()),
        // Part of most of them: whatever else is called so has to be explained.
        format!("site={}", site.name),
    ];
    passwords.into_iter().chain(more).collect::<Vec<_>>().join(" ")
}

/// A drill beside both living sites, which must both be afterwards what they were before.
fn drill(world: &World<'_>, clients: &Running) -> Result<(), Failure> {
    let sites = [&world.sites.north, &world.sites.south];
    // What clients do meanwhile would be a change too.
    clients.signal("STOP")?;
    sleep(Duration::from_secs(3));
    let before = sites.map(|site| seen(world, site)).into_iter().collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    let words = ["drill", "run", "cloud", "--level", "application"];
    let (code, said) = output(world.sites.command("operator", &words), minutes(5), "")?;
    if !matches!(code, Some(0 | 3)) {
        return Err(Failure::new(format!("the drill ended with {code:?}:\n{said}"), "its report says more"));
    }
    world.say(&format!("a drill passed in {:.1} s", begun.elapsed().as_secs_f64()));
    for (site, before) in sites.into_iter().zip(before) {
        let after = seen(world, site)?;
        let changed: Vec<&str> =
            before.lines().zip(after.lines()).filter(|(a, b)| a != b).map(|(_, b)| b).collect();
        if before != after {
            return Err(Failure::new(
                format!("the drill changed something at {}:\n{}", site.name, changed.join("\n")),
                "with --keep everything is left to look at",
            ));
        }
    }
    clients.signal("CONT")?;
    world.say("neither site was changed by it");
    Ok(())
}

/// A hash for each part of a site.
fn seen(world: &World<'_>, site: &Site) -> Result<String, Failure> {
    let look = world.python("world.py", |look| {
        look.env("OS_CLIENT_CONFIG_FILE", site.lab().join("clouds.yaml"))
            .env("OS_CLOUD", site.name)
            .env("SITE_FOLDER", site.folder())
            .env("SHARE_FOLDER", site.share_mount())
            .env("SOCKET", site.mariadb_socket());
        if world.sites.storage == Storage::Ceph {
            look.env("CEPH_CONF", site.ceph_conf());
        }
    });
    match output(look, minutes(2), "")? {
        (Some(0), text) => Ok(text),
        (code, text) => {
            Err(Failure::new(format!("looking at {} ended with {code:?}: {text}", site.name), "see above"))
        }
    }
}

/// A moment between now and one schedule's pause later (`SplitMix64`).
fn seeded(seed: u64, every_s: u64) -> Duration {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Duration::from_millis((x ^ (x >> 31)) % (every_s * 1000))
}
