//! Two sites of the lab with Farsite between them: what every scenario begins with and ends with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::children::output;
use super::sites::Sites;
use super::{Options, Storage};
use crate::failure::Failure;
use crate::lab;
use crate::lab::site::Site;
use crate::step::{minutes, run};

pub struct World<'w> {
    root: &'w Path,
    pub sites: Sites,
    pub folder: &'w Path,
    begun: Instant,
    every_s: u64,
}

impl<'w> World<'w> {
    /// Builds Farsite; nothing is started yet.
    pub fn build(root: &'w Path, options: &'w Options) -> Result<Self, Failure> {
        let begun = Instant::now();
        let farsite = farsite(root, options)?;
        let xtask = std::env::current_exe()
            .map_err(|e| Failure::new(format!("this program: {e}"), "build it again"))?;
        let sites = Sites::new(root, options, &farsite, &xtask)?;
        Ok(Self { root, sites, folder: &options.folder, begun, every_s: options.every_s })
    }

    /// Both sites up and set up, the scenario, and everything away again unless it is to be kept.
    pub fn run(
        &self,
        options: &Options,
        play: impl FnOnce(&Self) -> Result<String, Failure>,
    ) -> Result<(), Failure> {
        self.clear()?;
        let result = self.begin(options).and_then(|()| play(self));
        if options.keep {
            let folder = self.folder.display();
            self.say(&format!(
                "everything is left in {folder}; `lab down --purge --folder {folder}/lab` ends it"
            ));
        } else {
            self.clear()?;
        }
        println!("{}", result?);
        Ok(())
    }

    fn begin(&self, options: &Options) -> Result<(), Failure> {
        fs::create_dir_all(self.folder).map_err(|e| at(self.folder, &e))?;
        self.lab(match options.storage {
            Storage::Ceph => &["up", "--ceph"],
            Storage::Share => &["up"],
        })?;
        self.say("both sites are up");
        self.sites.set_up(options.every_s)
    }

    /// Seconds between two recovery points.
    pub fn every_s(&self) -> u64 {
        self.every_s
    }

    pub fn say(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", self.begun.elapsed().as_secs_f64());
    }

    pub fn lab(&self, words: &[&str]) -> Result<(), Failure> {
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

    /// South promoted at the level `application`; where the report is.
    pub fn fail_over(&self, more: &[&str]) -> Result<PathBuf, Failure> {
        self.fail_over_at("application", more)
    }

    pub fn fail_over_at(&self, level: &str, more: &[&str]) -> Result<PathBuf, Failure> {
        let begun = Instant::now();
        let mut words = vec!["failover", "--site", "north", "--level", level, "--assume-site-lost", "--yes"];
        words.extend(["--reason", "the site was destroyed", "--on-failure", "stop", "--json"]);
        words.extend(more);
        let (code, said) = output(self.sites.command("operator", &words), minutes(30), "")?;
        // 3: done, and a target was missed.
        if !matches!(code, Some(0 | 3)) {
            return Err(Failure::new(
                format!("the failover ended with {code:?}:\n{said}"),
                "with --keep everything is left to look at",
            ));
        }
        self.say(&format!(
            "south is promoted: `farsite failover` took {:.1} s",
            begun.elapsed().as_secs_f64()
        ));
        let (_, text) =
            output(self.sites.command("operator", &["promotion", "report", "--json"]), minutes(1), "")?;
        let report = self.folder.join("report.json");
        fs::write(&report, &text).map_err(|e| at(&report, &e))?;
        Ok(report)
    }

    /// Where a script finds a site's volumes.
    pub fn storage(&self, script: &mut Command, site: &Site) {
        match self.sites.storage {
            Storage::Ceph => script.env("CEPH_CONF", site.ceph_conf()),
            Storage::Share => script.env("SHARE_FOLDER", site.share_mount()),
        };
    }

    /// One of the scenario's scripts, in the lab's Python environment.
    pub fn python(&self, script: &str, with: impl FnOnce(&mut Command)) -> Command {
        let mut command = Command::new(&self.sites.python);
        command.arg(self.sites.scripts.join(script)).env("PYTHONWARNINGS", "ignore");
        // The scripts import each other; nothing is written beside them.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        with(&mut command);
        command
    }
}

/// Builds it, unless what is built will do.
pub fn farsite(root: &Path, options: &Options) -> Result<PathBuf, Failure> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = target.join(if options.release { "release" } else { "debug" }).join("farsite");
    if options.built && program.is_file() {
        return Ok(program);
    }
    let mut build = Command::new("cargo");
    build.args(["build", "--package", "farsite"]).current_dir(root);
    if options.release {
        build.arg("--release");
    }
    run(build, minutes(60), "cargo says above what is wrong")?;
    Ok(program)
}

pub fn at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()), "look at rights and free space there")
}
