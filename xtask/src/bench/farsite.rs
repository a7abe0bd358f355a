//! Farsite itself as one of the tools: a store in a folder, one group with the volume in it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Tool, at};
use crate::failure::Failure;
use crate::step::{minutes, run};

const GROUP: &str = "bench";

/// What is protected.
pub struct Item {
    /// Among the items of a policy.
    pub entry: String,
    pub id: String,
}

impl Item {
    /// A file, byte for byte.
    fn volume(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self { entry: format!("volume: {{ path: {} }}", path.display()), id: format!("volume/{name}") }
    }
}

pub struct Farsite {
    name: &'static str,
    compression: &'static str,
    binary: PathBuf,
    folder: PathBuf,
    replica: PathBuf,
    item: Item,
}

impl Farsite {
    /// At level 3, at which bytes are compared.
    pub fn new(binary: &Path, folder: &Path, volume: &Path) -> Self {
        Self::of(Item::volume(volume), binary, folder)
    }

    /// The same for anything else that a policy can name.
    pub fn of(item: Item, binary: &Path, folder: &Path) -> Self {
        Self::with(super::table::OWN, "3", item, binary, folder)
    }

    /// As it comes, with the level that the machine and the line ask for.
    pub fn adaptive(binary: &Path, folder: &Path, volume: &Path) -> Self {
        Self::with(super::table::OWN_ADAPTIVE, "auto", Item::volume(volume), binary, folder)
    }

    fn with(name: &'static str, compression: &'static str, item: Item, binary: &Path, folder: &Path) -> Self {
        let folder = folder.join(name);
        let replica = folder.join("replica");
        Self { name, compression, binary: binary.to_owned(), folder, replica, item }
    }

    /// The program with a site's configuration.
    fn command(&self, site: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.folder.join("keys").join(site).join("farsite.yaml")).args(args);
        command.env("NO_COLOR", "1").env_remove("FARSITE_CONFIG").env_remove("FARSITE_LOG");
        command
    }

    /// Points a generated configuration's state folder at ours.
    fn own_state(&self, site: &str) -> std::io::Result<()> {
        let path = self.folder.join("keys").join(site).join("farsite.yaml");
        let text = std::fs::read_to_string(&path)?;
        let state = format!("state: {}", self.folder.join("state").join(site).display());
        let lines = text.lines().map(|line| if line.starts_with("state:") { &state } else { line });
        std::fs::write(&path, lines.collect::<Vec<_>>().join("\n") + "\n")
    }

    fn policy(&self) -> std::io::Result<()> {
        let policies = self.folder.join("keys/north/policies");
        std::fs::create_dir_all(&policies)?;
        // Memory within what is promised.
        let text = format!(
            "group: {GROUP}\nsite: north\nto: [south]\nlevel: data\nschedule: \"@daily\"\nrpo: 2d\n\
             items:\n  - {}\nmemory: 160MiB\ncompression: {}\n",
            self.item.entry, self.compression
        );
        std::fs::write(policies.join(format!("{GROUP}.yaml")), text)
    }

    /// Where the standby keeps its own copy.
    fn place(&self) -> std::io::Result<()> {
        let mut file =
            std::fs::File::options().append(true).open(self.folder.join("keys/south/farsite.yaml"))?;
        let path = self.folder.join("standby/volume");
        std::fs::create_dir_all(self.folder.join("standby"))?;
        writeln!(file, "places:\n  {GROUP}:\n    volume: {{ path: {} }}", path.display())
    }
}

impl Tool for Farsite {
    fn name(&self) -> &str {
        self.name
    }

    fn init(&mut self) -> Result<(), Failure> {
        let _ = std::fs::remove_dir_all(&self.folder);
        std::fs::create_dir_all(&self.folder).map_err(|e| at(&self.folder, &e))?;
        let mut init = Command::new(&self.binary);
        init.arg("init").arg(self.folder.join("replica"));
        init.args(["--single-recipient", "--yes", "--out"]).arg(self.folder.join("keys"));
        run(init, minutes(5), "see above")?;
        let set_up = || {
            self.own_state("north")?;
            self.own_state("south")?;
            self.place()?;
            self.policy()
        };
        set_up().map_err(|e| at(&self.folder, &e))
    }

    fn backup(&self) -> Command {
        self.command("north", &["replicate", GROUP])
    }
    fn restore(&self, to: &Path) -> Command {
        let mut command = self.command("south", &["restore", "latest", &self.item.id, "--to"]);
        command.arg(to);
        command
    }
    fn restore_into(&self, to: &Path) -> Option<Command> {
        let mut command =
            self.command("south", &["restore", "latest", &self.item.id, "--in-place", "--yes", "--to"]);
        command.arg(to);
        Some(command)
    }
    fn check(&self) -> Command {
        self.command("south", &["points", "verify"])
    }
    fn hydrate(&self) -> Option<Command> {
        Some(self.command("south", &["hydrate"]))
    }
    fn store(&self) -> &Path {
        &self.replica
    }
    /// 3: the first copy of a large volume misses any target.
    fn good(&self) -> &[i32] {
        &[0, 3]
    }
}
