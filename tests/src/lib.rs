//! What the stories share: two sites in a temporary folder, with a replica store at south, keys in their places, and
//! configurations that the library and the real binary both read.

pub mod ceph;
pub mod images;
pub mod listing;
pub mod mariadb;
pub mod mounts;
pub mod process;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use farsite_model::clock::{Clock, SystemClock};
use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_model::{GroupName, SiteName};
use farsite_replicate::ReplicateError;
use farsite_replicate::connect;
use farsite_replicate::group::Group;
use farsite_replicate::round::{self, Ended, Member};
use farsite_replicate::run::{RunOptions, RunReport};
use farsite_store::Store;
use farsite_store::backend::SharedBackend;
use farsite_store::backend::folder::Folder;
use farsite_store::format::Format;
use farsite_store::keys::{BlockSecret, KeyRole, Role, Signer, generate_identity};
use farsite_store::ledger::Ledger;
use farsite_store::manifest::Manifest;
use farsite_store::read::Reader;

/// Two sites. Everything below is removed when this is dropped.
pub struct TwoSites {
    pub dir: tempfile::TempDir,
}

pub fn site(name: &str) -> SiteName {
    SiteName::new(name).expect("the tests' site names are valid")
}
pub fn cloud() -> GroupName {
    GroupName::new("cloud").expect("it is valid")
}

/// One round, and how each of its runs ended.
pub async fn ends(members: Vec<Member>) -> Vec<Ended> {
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    round::round(members, ended).await;
    let mut all = Vec::new();
    while let Some(end) = ends.recv().await {
        all.push(end);
    }
    all
}

/// A round of one.
pub async fn run(group: Group, options: RunOptions) -> Result<RunReport, ReplicateError> {
    let mut ends = ends(vec![Member { group: Arc::new(group), options }]).await;
    ends.pop().expect("a run that was begun ends").result
}

/// Incompressible bytes, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

impl TwoSites {
    /// Founds the store in a folder at south, with keys for all, and a policy for the group `cloud` whose items are
    /// `items` (YAML list lines, `NORTH` stands for north's data folder).
    pub async fn founded(items: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let sites = Self { dir };
        for folder in ["north/data", "north/policies", "south/policies", "south/places"] {
            std::fs::create_dir_all(sites.path(folder)).expect("folders can be made");
        }
        let backend: SharedBackend =
            Arc::new(Folder::create_root(sites.path("south/replica")).expect("a folder"));
        sites.keys(&backend).await;
        for name in ["north", "south"] {
            std::fs::write(sites.path(&format!("{name}/farsite.yaml")), sites.config_text(name))
                .expect("a file");
        }
        sites.policy(items);
        sites
    }

    async fn keys(&self, backend: &SharedBackend) {
        let mut roles = Vec::new();
        let mut signer = |file: &str, role: Role, at: Option<&str>, name: &str| {
            let (signer, text) = Signer::generate();
            text.write_new(&self.path(file), name).expect("a key file");
            roles.push(KeyRole { key: signer.public(), role, site: at.map(site), name: name.into() });
        };
        signer("north/source-agent.key", Role::SourceAgent, Some("north"), "north");
        signer("south/source-agent.key", Role::SourceAgent, Some("south"), "south");
        signer("south/standby-agent.key", Role::StandbyAgent, Some("south"), "south");
        signer("south/operator.key", Role::Operator, None, "ann");
        let (secret, text) = BlockSecret::generate();
        text.write_new(&self.path("north/block.secret"), "north").expect("a key file");
        let (identity, recipient) = generate_identity();
        identity.write_new(&self.path("south/south.identity"), "south").expect("a key file");
        let format = Format::new(vec![recipient], roles, &secret, jiff::Timestamp::now()).expect("a format");
        format.create(backend).await.expect("the store is founded");
    }

    fn config_text(&self, name: &str) -> String {
        let store = self.path("south/replica");
        let store = store.display();
        let north = format!(
            "site: north\nsites: {{ north: {{}}, south: {{}} }}\nstores:\n  south: {{ url: {store}, single-recipient: true }}\nstate: state\nkeys: {{ source-agent: source-agent.key, block-secret: block.secret }}\n"
        );
        let places = self.path("south/places");
        let places = places.display();
        let south = format!(
            "site: south\nsites: {{ north: {{}}, south: {{}} }}\nstores:\n  south: {{ url: {store}, single-recipient: true, identity: south.identity }}\nstate: state\nkeys: {{ operator: operator.key, standby-agent: standby-agent.key }}\nplaces:\n  cloud:\n    mariadb: {{ datadir: {places}/db, socket: {places}/db.sock }}\n    sqlite: {{ path: {places}/cloud.db }}\n    glance: {{ path: {places}/images }}\n    cinder: {{ path: {places}/volumes }}\n    volume: {{ path: {places}/volume }}\n    files: {{ path: {places}/files }}\n"
        );
        if name == "north" { north } else { south }
    }

    /// Writes the policy anew, at both sites.
    pub fn policy(&self, items: &str) {
        let items = items.replace("NORTH", &self.path("north/data").display().to_string());
        let text = format!(
            "group: cloud\nsite: north\nto: [south]\nlevel: application\nschedule: \"* * * * * *\"\nrpo: 20s\nrto: 2m\nitems:\n{items}"
        );
        for at in ["north", "south"] {
            std::fs::write(self.path(&format!("{at}/policies/cloud.yaml")), &text).expect("a policy");
        }
    }

    /// One more store, founded as a person does it: with the keys that the source has. `access` is what its configuration says
    /// of credentials. Whoever promotes it has `NAME/operator/farsite.yaml`.
    pub fn one_more_standby(&self, name: &str, url: &str, access: &str) {
        let keys = self.path("north").display().to_string();
        let mut init = self.command("north/farsite.yaml", &["init", url, "--site", name, "--out", "new"]);
        init.args(["--source-keys", &keys, "--single-recipient"]);
        init.env("AWS_ACCESS_KEY_ID", "owner").env("AWS_SECRET_ACCESS_KEY", "secret-secret");
        let founded = init.output().expect("the program starts");
        assert!(founded.status.success(), "{}", said(&founded));
        assert!(!self.path("new/north/source-agent.key").exists(), "the source keeps its keys");
        std::fs::create_dir_all(self.path(name)).expect("folders can be made");
        std::fs::rename(self.path("new/operator"), self.path(&format!("{name}/operator")))
            .expect("it is there");
        // What init says is to be added, put below the words that are there.
        let addition =
            std::fs::read_to_string(self.path("new/north/add-to-farsite.yaml")).expect("it is there");
        let store = addition.split_once("stores:\n").expect("a store is added").1.to_owned() + access;
        self.edit("north/farsite.yaml", |text| {
            let text = text.replace("south: {} }", &format!("south: {{}}, {name}: {{}} }}"));
            text.replace("stores:\n", &format!("stores:\n{store}"))
        });
        self.edit(&format!("{name}/operator/farsite.yaml"), |text| {
            text.replace("    identity:", &format!("{access}    identity:"))
        });
        self.edit("north/policies/cloud.yaml", |text| {
            text.replace("to: [south]", &format!("to: [south, {name}]"))
        });
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
    /// North's data folder.
    pub fn data(&self, below: &str) -> PathBuf {
        self.path("north/data").join(below)
    }
    pub fn config(&self, at: &str) -> Arc<Config> {
        Arc::new(Config::load(&self.path(&format!("{at}/farsite.yaml"))).expect("the configuration is valid"))
    }
    pub fn the_policy(&self) -> Policy {
        Policy::load(&self.path("north/policies/cloud.yaml")).expect("the policy is valid")
    }

    pub async fn group(&self, clock: Arc<dyn Clock>) -> Group {
        let (config, policy) = (self.config("north"), self.the_policy());
        Group::open(&config, &policy, &site("south"), clock).await.expect("the group opens")
    }

    /// One run with the machine's own clock.
    pub async fn replicate(&self) -> RunReport {
        self.replicate_by(Arc::new(SystemClock)).await
    }
    pub async fn replicate_by(&self, clock: Arc<dyn Clock>) -> RunReport {
        let group = self.group(clock).await;
        run(group, RunOptions::default()).await.expect("the run makes a point")
    }

    pub async fn store(&self) -> Store {
        connect::store(&self.config("south"), &site("south")).await.expect("the store opens")
    }
    pub async fn reader(&self) -> Reader {
        let store = self.store().await;
        connect::reader(&self.config("south"), &site("south"), &store).await.expect("the identity opens it")
    }
    pub async fn ledger(&self) -> Ledger {
        Ledger::open(&self.store().await, &cloud()).await.expect("the ledger is readable")
    }
    pub async fn manifest(&self, point: farsite_model::PointId) -> Manifest {
        let ledger = self.ledger().await;
        let committed = ledger.state().point(point).expect("the point is in the ledger");
        Manifest::read(ledger.store(), &cloud(), point, &committed.said.manifest)
            .await
            .expect("its manifest is whole")
    }

    /// Changes a file.
    pub fn edit(&self, below: &str, change: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(self.path(below)).expect("it is there");
        std::fs::write(self.path(below), change(text)).expect("it can be written");
    }

    /// Another machine of south: the same keys and places, a state folder of its own. Gives its configuration's name for
    /// [`Self::command`].
    pub fn another_machine(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.path("south/farsite.yaml")).expect("it is there");
        let text = text.replace("state: state", &format!("state: state-of-{name}"));
        let config = format!("south/{name}.yaml");
        std::fs::write(self.path(&config), text).expect("a file");
        config
    }

    /// The real program with a configuration below the temporary folder, away from this machine's own.
    pub fn command(&self, config: &str, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("--config").arg(self.path(config)).args(args).current_dir(self.dir.path());
        for name in ["FARSITE_CONFIG", "FARSITE_LOG", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
            command.env_remove(name);
        }
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Runs the real program with a site's configuration.
    pub fn farsite(&self, at: &str, args: &[&str]) -> Output {
        self.command(&format!("{at}/farsite.yaml"), args).output().expect("the program starts")
    }
}

/// The number that a story's random choices follow: of `FARSITE_SEED`, else always the same. It is printed, so that a
/// failure can be played again.
pub fn seed() -> u64 {
    let seed = std::env::var("FARSITE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260);
    println!("FARSITE_SEED={seed} plays this again");
    seed
}

/// Random numbers that follow from a seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// One of `from..to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.draw() % (to - from)
    }
    /// Incompressible bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            eight.copy_from_slice(&self.draw().to_le_bytes()[..eight.len()]);
        }
    }
}

/// The program, which cargo has built beside the tests.
pub fn binary() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own file");
    let program = exe.ancestors().nth(2).unwrap_or(Path::new(".")).join("farsite");
    assert!(program.exists(), "{} is missing: `cargo build -p farsite` makes it", program.display());
    program
}

/// Both streams of a program, for messages of assertions.
pub fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
