//! A site to type commands at: the real program, a store in a folder, an SQLite database, images, a volume, keys.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// No command of these tests may take longer.
const LIMIT: Duration = Duration::from_secs(100);

/// How a command ended.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Fails with everything that was printed unless the exit code is the expected one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
    #[track_caller]
    pub fn says(&self, words: &[&str]) -> &Self {
        for word in words {
            assert!(
                self.stdout.contains(word) || self.stderr.contains(word),
                "{word:?} is not in\nstdout:\n{}\nstderr:\n{}",
                self.stdout,
                self.stderr
            );
        }
        self
    }
}

/// The program, away from this machine's own configuration.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farsite"));
    command.current_dir(folder).stdin(Stdio::null());
    for name in ["FARSITE_CONFIG", "FARSITE_LOG", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "NO_COLOR"] {
        command.env_remove(name);
    }
    command
}

pub fn run(folder: &Path, args: &[&str]) -> Ended {
    finish(program(folder).args(args))
}

/// Runs to its end, or fails when that does not come.
pub fn finish(command: &mut Command) -> Ended {
    use std::io::Read;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{command:?} does not end: {}", errors.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ended {
        code: status.code().unwrap_or(-1),
        stdout: reader.join().unwrap(),
        stderr: errors.join().unwrap(),
    }
}

/// Two sites in one folder.
pub struct World {
    pub folder: TempDir,
}

const POLICY: &str = r"
group: cloud
site: north
to: [south]
level: application
schedule: '*/15 * * * *'
rpo: 20m
rto: 10m
items:
  - sqlite: { path: CLOUD/cloud.db }
  - glance: { store: CLOUD/images }
  - cinder: { path: CLOUD/volumes }
  - files: { name: keystone, paths: [CLOUD/keystone] }
";

pub const IMAGE: &str = "6b9f0a4e-0f5e-4c3a-9d55-0d1d6f6f9a01";

impl World {
    /// A store, both sites' configurations, and a small cloud at north; nothing is replicated yet.
    pub fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        run(world.path(), &["init", "./store", "--out", "keys"]).expect(0);
        std::fs::rename(world.at("keys/north"), world.at("north")).unwrap();
        std::fs::rename(world.at("keys/operator"), world.at("south")).unwrap();
        for folder in ["cloud/images", "cloud/volumes", "cloud/keystone", "north/policies", "south/policies"]
        {
            std::fs::create_dir_all(world.at(folder)).unwrap();
        }
        world.edit("north/farsite.yaml", local);
        let places = format!(
            "places:\n  cloud:\n    sqlite: {{ path: {0}/restored/cloud.db }}\n    glance: {{ path: {0}/restored/images }}\n    \
             cinder: {{ path: {0}/restored/volumes }}\n    files: {{ path: {0}/restored/files }}\n    variables:\n      \
             endpoint_table: endpoint\n      old_endpoint: north.example\n      new_endpoint: south.example\n",
            world.path().display()
        );
        world.edit("south/farsite.yaml", |text| local(text) + &places);
        let policy = POLICY.replace("CLOUD", &world.at("cloud").display().to_string());
        for site in ["north", "south"] {
            std::fs::write(world.at(&format!("{site}/policies/cloud.yaml")), &policy).unwrap();
        }
        let database = world.sql();
        database
            .execute_batch(
                "CREATE TABLE endpoint (id INTEGER PRIMARY KEY, url TEXT);
                 INSERT INTO endpoint VALUES (1, 'http://north.example:5000/v3');
                 CREATE TABLE heartbeat (n INTEGER PRIMARY KEY);
                 INSERT INTO heartbeat VALUES (1);",
            )
            .unwrap();
        std::fs::write(world.at("cloud/images").join(IMAGE), vec![7; 300_000]).unwrap();
        std::fs::write(world.at("cloud/volumes/volume-1"), vec![9; 500_000]).unwrap();
        std::fs::write(world.at("cloud/keystone/0"), "a fernet key").unwrap();
        // An image whose file is this young could still be written to.
        let old = std::time::SystemTime::now() - Duration::from_mins(1);
        for file in [world.at("cloud/images").join(IMAGE), world.at("cloud/volumes/volume-1")] {
            std::fs::File::options().write(true).open(file).unwrap().set_modified(old).unwrap();
        }
        world
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
    pub fn edit(&self, name: &str, change: impl FnOnce(String) -> String) {
        let path = self.at(name);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, change(text)).unwrap();
    }
    pub fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.at("cloud/cloud.db")).unwrap()
    }
    pub fn beat(&self, n: i64) {
        self.sql().execute("INSERT INTO heartbeat VALUES (?1)", [n]).unwrap();
    }
    /// A command at a site.
    pub fn site(&self, site: &str, args: &[&str]) -> Ended {
        let mut command = program(self.path());
        command.arg("--config").arg(self.at(&format!("{site}/farsite.yaml"))).args(args);
        finish(&mut command)
    }
    /// One at south that goes on while the test does something else.
    pub fn begin_south(&self, args: &[&str]) -> Child {
        let mut command = program(self.path());
        command.arg("--config").arg(self.at("south/farsite.yaml")).args(args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
    pub fn north(&self, args: &[&str]) -> Ended {
        self.site("north", args)
    }
    pub fn south(&self, args: &[&str]) -> Ended {
        self.site("south", args)
    }
    /// One run; the new point's id.
    #[track_caller]
    pub fn replicate(&self) -> String {
        let ended = self.north(&["replicate", "--json"]).expect(0);
        ended.json()[0]["report"]["point"].as_str().unwrap().to_owned()
    }
    /// Every file below the store.
    pub fn store_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut stack = vec![self.at("store")];
        while let Some(folder) = stack.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() { stack.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files
    }
}

/// State beside the configuration, no dashboard on a fixed port.
fn local(text: String) -> String {
    text.replace("/var/lib/farsite", "./state").replace("web: 127.0.0.1:7400\n", "")
}
