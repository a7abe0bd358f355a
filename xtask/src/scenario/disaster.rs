//! The scenario that decides: a living cloud is lost at a random moment, and its standby must answer for everything that it
//! had acknowledged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Options;
use super::children::{Running, output};
use super::sites::Sites;
use crate::failure::Failure;
use crate::lab;
use crate::step::{minutes, run};

/// Until the first recovery point is there.
const FIRST_POINT: Duration = Duration::from_mins(5);

pub fn disaster(root: &Path, options: &Options) -> Result<(), Failure> {
    let begun = Instant::now();
    let say = |what: &str| eprintln!("[{:6.1} s] {what}", begun.elapsed().as_secs_f64());
    let farsite = build(root, options.release)?;
    let xtask =
        std::env::current_exe().map_err(|e| Failure::new(format!("this program: {e}"), "build it again"))?;
    let world =
        World { root, sites: Sites::new(&options.folder, &farsite, &xtask)?, folder: &options.folder };
    world.clear()?;
    let result = world.play(options, &say);
    if options.keep {
        say(&format!(
            "everything is left in {}; `lab down --purge --folder {0}/lab` ends it",
            options.folder.display()
        ));
    } else {
        world.clear()?;
    }
    let figures = result?;
    println!("{figures}");
    say("everything that north had acknowledged by the moment recovered to is there");
    Ok(())
}

fn build(root: &Path, release: bool) -> Result<PathBuf, Failure> {
    let mut build = Command::new("cargo");
    build.args(["build", "--package", "farsite"]).current_dir(root);
    if release {
        build.arg("--release");
    }
    run(build, minutes(60), "cargo says above what is wrong")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join(if release { "release" } else { "debug" }).join("farsite"))
}

struct World<'w> {
    root: &'w Path,
    sites: Sites,
    folder: &'w Path,
}

impl World<'_> {
    fn lab(&self, words: &[&str]) -> Result<(), Failure> {
        let folder = self.sites.north.lab().display().to_string();
        let mut all = words.to_vec();
        all.extend(["--folder", &folder]);
        lab::lab(self.root, &all)
    }

    /// Nothing of an earlier run.
    fn clear(&self) -> Result<(), Failure> {
        if self.sites.north.lab().exists() {
            // A promoted database is started by Farsite itself, and stopped with its site's processes.
            self.lab(&["down", "--purge"])?;
        }
        match fs::remove_dir_all(self.folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::new(
                format!("{} cannot be removed: {e}", self.folder.display()),
                "what is in it?",
            )),
            _ => Ok(()),
        }
    }

    fn play(&self, options: &Options, say: &dyn Fn(&str)) -> Result<String, Failure> {
        let (north, south) = (&self.sites.north, &self.sites.south);
        fs::create_dir_all(self.folder).map_err(|e| at(self.folder, &e))?;
        self.lab(&["up"])?;
        say("both sites are up");
        self.sites.set_up(options.every_s)?;
        let promises = self.folder.join("promises.jsonl");
        let mut clients = Running::start(
            "north's clients",
            self.python("load.py", |load| {
                load.env("OS_CLIENT_CONFIG_FILE", north.lab().join("clouds.yaml"))
                    .env("OS_CLOUD", "north")
                    .env("SHARE_FOLDER", north.share_mount())
                    .env("PROMISES", &promises)
                    .env("SEED", options.seed.to_string());
            }),
            &self.folder.join("clients.log"),
        )?;
        wait_for(
            &mut clients,
            |clients| clients.said().contains("ready"),
            minutes(2),
            "the clients' first writes",
        )?;
        say("clients are at work");
        let agent = |site: &str| {
            let log = self.folder.join(format!("{site}-agent.log"));
            Running::start("an agent", self.sites.command(site, &["agent"]), &log)
        };
        let mut source = agent("north")?;
        let mut standby = agent("south")?;
        let has_point = |_: &Running| {
            let list = output(self.sites.command("south", &["points", "list"]), minutes(1), "");
            list.is_ok_and(|(_, text)| text.lines().any(|line| line.contains("cloud")))
        };
        wait_for(&mut source, has_point, FIRST_POINT, "the first recovery point")?;
        let left = Duration::from_secs(5) + seeded(options.seed, options.every_s);
        say(&format!("the first recovery point is there; disaster strikes in {:.1} s", left.as_secs_f64()));
        let strikes = Instant::now() + left;
        while Instant::now() < strikes {
            sleep(Duration::from_millis(200));
            clients.lives()?;
            source.lives()?;
            standby.lives()?;
        }
        let struck = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        source.kill();
        self.lab(&["destroy", "north"])?;
        clients.kill();
        say("north is no more");

        let report = self.folder.join("report.json");
        let begun = Instant::now();
        let failover =
            ["failover", "--site", "north", "--level", "application", "--assume-site-lost", "--yes"];
        let more = ["--reason", "the site was destroyed", "--on-failure", "stop", "--json"];
        let words: Vec<&str> = failover.into_iter().chain(more).collect();
        let (code, said) = output(self.sites.command("operator", &words), minutes(5), "")?;
        let took = begun.elapsed().as_secs_f64();
        if !matches!(code, Some(0 | 3)) {
            return Err(Failure::new(
                format!("the failover ended with {code:?}:\n{said}"),
                "with --keep everything is left to look at",
            ));
        }
        say(&format!("south is promoted: `farsite failover` took {took:.1} s"));
        let (_, text) =
            output(self.sites.command("operator", &["promotion", "report", "--json"]), minutes(1), "")?;
        fs::write(&report, &text).map_err(|e| at(&report, &e))?;
        let verify = self.python("verify.py", |verify| {
            verify
                .env("AUTH_URL", south.url(lab::site::KEYSTONE, "/v3"))
                .env("REGION", south.region())
                .env("ADMIN_PASSWORD", north.password("admin"))
                .env("SHARE_FOLDER", south.share_mount())
                .env("PROMISES", &promises)
                .env("REPORT", &report)
                .env("DISASTER", format!("{:.3}", struck.as_secs_f64()));
        });
        let (code, figures) = output(verify, minutes(5), "")?;
        if code != Some(0) {
            return Err(Failure::new(
                format!("south does not answer for what north had acknowledged:\n{figures}"),
                format!("seed {}; with --keep everything is left to look at", options.seed),
            ));
        }
        drop(standby);
        Ok(figures)
    }

    /// One of the scenario's scripts, in the lab's Python environment.
    fn python(&self, script: &str, with: impl FnOnce(&mut Command)) -> Command {
        let mut command = Command::new(lab::environment(self.root).join("bin/python"));
        command.arg(self.root.join("xtask/scenario").join(script)).env("PYTHONWARNINGS", "ignore");
        with(&mut command);
        command
    }
}

/// Looks every half second until it is so; an error when the process ends, or the time.
fn wait_for(
    process: &mut Running,
    is_there: impl Fn(&Running) -> bool,
    limit: Duration,
    what: &str,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    while !is_there(process) {
        process.lives()?;
        if Instant::now() > deadline {
            return Err(Failure::new(
                format!("{what} did not come in {} s; the log's end:\n{}", limit.as_secs(), process.said()),
                "with --keep everything is left to look at",
            ));
        }
        sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// A moment between now and one schedule's pause later (`SplitMix64`).
fn seeded(seed: u64, every_s: u64) -> Duration {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Duration::from_millis((x ^ (x >> 31)) % (every_s * 1000))
}

fn at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()), "look at rights and free space there")
}
