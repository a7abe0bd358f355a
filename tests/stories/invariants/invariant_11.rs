//! No secret appears in a log, a journal, an error, a process list or a report.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use farsite_s3server::{Credentials, Server};
use farsite_scenarios::listing::Listing;
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{binary, noise, said};
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_mins(1);
const ACCESS_KEY: &str = "AKFARSITETESTS";
const SECRET_KEY: &str = "s3-secret-7hR2vQmX0pLw9ZkTn4bJ";
/// Everything that there is, of every library.
const LOUDEST: &str = "trace";

/// A cloud at north whose store is a bucket at south; every secret lies in a file of its own.
struct World {
    dir: tempfile::TempDir,
    /// Dropped with the world.
    _server: Server,
    endpoint: String,
    /// What every command printed, by its words.
    printed: std::cell::RefCell<Vec<(String, Vec<u8>)>>,
}

const POLICY: &str = "
group: cloud
site: north
to: [south]
level: application
schedule: '* * * * * *'
rpo: 20m
rto: 10m
items:
  - sqlite: { path: ROOT/cloud/cloud.db }
  - cinder: { path: ROOT/cloud/volumes }
  - files: { name: keystone, paths: [ROOT/cloud/keystone] }
";
const PLACES: &str = "places:
  cloud:
    sqlite: { path: ROOT/restored/cloud.db }
    cinder: { path: ROOT/restored/volumes }
    files: { path: ROOT/restored/files }
";

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("s3")).unwrap();
        Server::create_bucket(&dir.path().join("s3"), "replica").unwrap();
        let credentials =
            Credentials { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into(), may_only_add: false };
        let server = Server::start(&dir.path().join("s3"), 0, vec![credentials]).await.unwrap();
        let endpoint = server.endpoint();
        Self { dir, _server: server, endpoint, printed: std::cell::RefCell::default() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn private(&self, name: &str, text: &str) {
        let options = std::fs::File::options().write(true).create_new(true).mode(0o600).open(self.at(name));
        options.unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Configurations as `farsite init` wrote them, with the S3 keys in files, and a small cloud.
    fn set_up(&self) {
        self.private("s3-access-key", &format!("{ACCESS_KEY}\n"));
        self.private("s3-secret-key", &format!("{SECRET_KEY}\n"));
        let root = self.dir.path().display().to_string();
        for (machine, more) in [("north", ""), ("south", PLACES), ("operator", PLACES)] {
            let path = self.at(&format!("keys/{machine}/farsite.yaml"));
            let text = std::fs::read_to_string(&path).unwrap();
            let keys = format!(
                "    access-key: file:{root}/s3-access-key\n    secret-key: file:{root}/s3-secret-key\n    path-style: true\n"
            );
            let mut lines: Vec<&str> = text.lines().filter(|line| !line.contains("web:")).collect();
            let url = lines.iter().position(|line| line.contains("url:")).unwrap();
            lines.insert(url + 1, keys.trim_end());
            let text =
                lines.join("\n").replace("/var/lib/farsite", "./state") + "\n" + &more.replace("ROOT", &root);
            std::fs::write(path, text).unwrap();
            std::fs::create_dir_all(self.at(&format!("keys/{machine}/policies"))).unwrap();
            let policy = POLICY.replace("ROOT", &root);
            std::fs::write(self.at(&format!("keys/{machine}/policies/cloud.yaml")), policy).unwrap();
        }
        for folder in ["cloud/volumes", "cloud/keystone"] {
            std::fs::create_dir_all(self.at(folder)).unwrap();
        }
        let database = rusqlite::Connection::open(self.at("cloud/cloud.db")).unwrap();
        database
            .execute_batch("CREATE TABLE beat (n INTEGER PRIMARY KEY); INSERT INTO beat VALUES (7)")
            .unwrap();
        std::fs::write(self.at("cloud/volumes/volume-a"), noise(2, 1 << 20)).unwrap();
        std::fs::write(self.at("cloud/keystone/0"), "a key of the cloud").unwrap();
    }

    fn command(&self, machine: &str, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("FARSITE_"))
        {
            command.env_remove(name);
        }
        command.current_dir(self.dir.path()).env("FARSITE_LOG", LOUDEST).args(args);
        if machine != "nobody" {
            command.arg("--config").arg(self.at(&format!("keys/{machine}/farsite.yaml")));
        }
        command
    }

    /// Runs a command with the loudest log, and keeps what it printed.
    #[track_caller]
    fn ran(&self, machine: &str, args: &[&str], code: i32) {
        self.ran_as(&mut self.command(machine, args), &format!("{machine}: {}", args.join(" ")), code);
    }

    #[track_caller]
    fn ran_as(&self, command: &mut Command, words: &str, code: i32) {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words}: {}", said(&output));
        self.printed.borrow_mut().push((words.to_owned(), [output.stdout, output.stderr].concat()));
    }

    /// Every secret, in the forms that it could appear in.
    fn secrets(&self) -> Secrets {
        let mut found = Secrets::default();
        found.add("the S3 secret key", SECRET_KEY.as_bytes());
        for (path, (_, bytes)) in Listing::of(&self.at("keys")).0 {
            let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            let (true, Some(bytes)) = (matches!(kind, "key" | "secret" | "identity"), bytes) else {
                continue;
            };
            let text = String::from_utf8(bytes).unwrap();
            for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
                let what = path.display().to_string();
                found.add(&what, line.as_bytes());
                found.add(&what, line.to_lowercase().as_bytes());
                // What stands behind the words: hex of the bytes themselves, upper and lower, and the bytes.
                let value = line.rsplit('-').next().unwrap();
                found.add(&what, value.as_bytes());
                found.add(&what, value.to_uppercase().as_bytes());
                if let Some(raw) = raw(value) {
                    found.add(&what, &raw);
                }
            }
        }
        found
    }
}

fn raw(hex: &str) -> Option<Vec<u8>> {
    let pairs =
        hex.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
    pairs.collect()
}

/// What must not be found, each with a name that may be printed.
#[derive(Clone)]
struct Secrets {
    names: BTreeMap<Vec<u8>, String>,
    /// By their first two bytes, which sort out nearly all places.
    may_start: Vec<bool>,
}

impl Default for Secrets {
    fn default() -> Self {
        Self { names: BTreeMap::new(), may_start: vec![false; 1 << 16] }
    }
}

impl Secrets {
    fn start(two: &[u8]) -> usize {
        usize::from(two[0]) << 8 | usize::from(two[1])
    }
    fn add(&mut self, name: &str, needle: &[u8]) {
        assert!(needle.len() >= 16, "{name} would be found everywhere");
        self.may_start[Self::start(needle)] = true;
        self.names.insert(needle.to_vec(), name.to_owned());
    }
    /// Names of the secrets that stand in the bytes.
    fn found_in(&self, bytes: &[u8]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let places = bytes.windows(2).enumerate().filter(|(_, two)| self.may_start[Self::start(two)]);
        for (at, _) in places {
            let here = self.names.iter().filter(|(needle, _)| bytes[at..].starts_with(needle));
            found.extend(here.map(|(_, name)| name.clone()));
        }
        found
    }
}

/// Looks at the command lines of all processes, again and again, until it is dropped.
struct ProcessLists {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<BTreeSet<String>>>,
}

impl ProcessLists {
    fn watch(secrets: Secrets) -> Self {
        let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), looks.clone());
        let thread = std::thread::spawn(move || {
            let mut found = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    counted.fetch_add(u64::from(line.windows(7).any(|w| w == b"farsite")), Ordering::Relaxed);
                    found.extend(secrets.found_in(&line));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            found
        });
        Self { stop, looks, thread: Some(thread) }
    }
    fn end(mut self) -> (u64, BTreeSet<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let found = self.thread.take().unwrap().join().unwrap();
        (self.looks.load(Ordering::Relaxed), found)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_11_no_secret_appears_anywhere() {
    let world = World::new().await;
    // Keys exist only after `init`; its process is looked at for what is known before.
    let mut known = Secrets::default();
    known.add("the S3 secret key", SECRET_KEY.as_bytes());
    let lists = ProcessLists::watch(known);
    let url = format!("s3://replica/north?endpoint={}&region=south&path-style=true", world.endpoint);
    let mut init = world.command("nobody", &["init", &url, "--out", "keys"]);
    init.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    world.ran_as(&mut init, "init", 0);
    let (_, in_lists) = lists.end();
    assert!(in_lists.is_empty(), "{in_lists:?}");
    world.set_up();
    let secrets = world.secrets();
    assert!(secrets.names.len() > 20, "{}", secrets.names.len());

    let lists = ProcessLists::watch(secrets.clone());
    // One that is there is found.
    let shown = Command::new("sh").args(["-c", "sleep 0.3; true", SECRET_KEY]).status().unwrap();
    let (_, in_lists) = lists.end();
    assert!(shown.success() && !in_lists.is_empty(), "the watch over the process list sees");

    let lists = ProcessLists::watch(secrets.clone());
    everything_that_a_site_does(&world);
    let (looks, in_lists) = lists.end();
    assert!(looks > 50, "the processes were seen: {looks}");
    assert!(in_lists.is_empty(), "in the process list: {in_lists:?}");

    let printed = world.printed.borrow();
    let mut wrong: Vec<String> = Vec::new();
    for (words, bytes) in printed.iter() {
        wrong.extend(secrets.found_in(bytes).iter().map(|name| format!("printed by {words}: {name}")));
    }
    let mut own_files = 0;
    for (path, (_, bytes)) in Listing::of(world.dir.path()).0 {
        let found = secrets.found_in(&bytes.unwrap_or_default());
        let is_key_file = path.starts_with("s3-secret-key")
            || path.extension().is_some_and(|e| e == "key" || e == "secret" || e == "identity");
        if is_key_file {
            own_files += usize::from(!found.is_empty());
        } else {
            wrong.extend(found.iter().map(|name| format!("in {}: {name}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(own_files, 8, "the search finds each secret in its own file");
    assert!(printed.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > 100_000, "the logs were loud");
}

/// Every command that touches a secret, well and badly.
fn everything_that_a_site_does(world: &World) {
    world.ran("north", &["check"], 0);
    world.ran("south", &["check", "--json"], 0);
    world.ran("operator", &["check"], 0);
    world.ran("north", &["replicate"], 0);
    world.ran("north", &["replicate", "--json", "--full"], 0);
    let log = world.at("agent.log");
    let mut agent = Running::start(world.command("north", &["agent"]), &log);
    let committed = || std::fs::read_to_string(&log).unwrap().matches("recovery point committed").count();
    assert!(comes_true(LIMIT, || committed() >= 2), "{}", agent.said());
    agent.signal(Signal::HUP);
    agent.signal(Signal::TERM);
    assert_eq!(agent.ends_within(LIMIT), Some(0), "{}", agent.said());
    world.ran("north", &["status", "--json"], 0);
    world.ran("south", &["points", "verify"], 0);
    world.ran("south", &["points", "show", "latest"], 0);
    world.ran("south", &["restore", "latest", "files/keystone", "--to", "by-hand"], 0);
    world.ran("operator", &["drill", "run"], 0);
    world.ran("operator", &["drill", "report", "--format", "html", "--out", "drill.html"], 0);
    let lost = ["failover", "--site", "north", "--assume-site-lost", "--reason", "fire"];
    world.ran("operator", &[&lost[..], &["--dry-run"]].concat(), 0);
    // Errors: without a word from a person, with a key that may not say it, after the epoch has ended.
    world.ran("operator", &lost, 4);
    world.ran("south", &[&lost[..], &["--yes"]].concat(), 2);
    world.ran("operator", &[&lost[..], &["--yes"]].concat(), 0);
    world.ran("north", &["replicate"], 4);
    world.ran("operator", &["promotion", "show"], 0);
    world.ran("operator", &["promotion", "report", "--format", "junit", "--out", "promotion.xml"], 0);
    world.ran("operator", &["promotion", "report", "--json"], 0);
    world.ran("operator", &["accept", "--yes"], 0);
    wrong_keys(world);
}

/// Keys that are not what they should be: a message may quote a file's name, and never its line.
fn wrong_keys(world: &World) {
    let operator = std::fs::read_to_string(world.at("keys/operator/farsite.yaml")).unwrap();
    let wrong = [
        ("identity: south.identity", "identity: operator.key"),
        ("operator: operator.key", "operator: south.identity"),
        ("secret-key: file:", "secret-key: "),
        ("s3-secret-key", "keys/operator/operator.key"),
    ];
    for (right, wrong) in wrong {
        assert!(operator.contains(right), "{right}");
        std::fs::write(world.at("keys/operator/farsite.yaml"), operator.replace(right, wrong)).unwrap();
        let output = world.command("operator", &["points", "verify"]).output().unwrap();
        world.printed.borrow_mut().push((format!("with {wrong}"), [output.stdout, output.stderr].concat()));
        let output =
            world.command("operator", &["points", "hold", "latest", "--reason", "x"]).output().unwrap();
        world
            .printed
            .borrow_mut()
            .push((format!("hold with {wrong}"), [output.stdout, output.stderr].concat()));
    }
    // The secret itself where a reference to it belongs, in the forms that YAML has: refused without a quotation. (The file has a
    // key file's ending, because it does hold the secret.)
    let literals = [
        SECRET_KEY.to_owned(),
        format!("/{SECRET_KEY}"),
        format!("\"{SECRET_KEY}\""),
        format!("|\n      {SECRET_KEY}"),
    ];
    for literal in literals {
        let line = operator.lines().find(|line| line.contains("secret-key:")).unwrap();
        let text = operator.replace(line, &format!("    secret-key: {literal}"));
        std::fs::write(world.at("literal.key"), text).unwrap();
        let mut status = world.command("nobody", &["status", "--config", "literal.key"]);
        world.ran_as(&mut status, &format!("a literal of {} lines", literal.lines().count()), 2);
    }
    std::fs::remove_file(world.at("literal.key")).unwrap();
    std::fs::write(world.at("keys/operator/farsite.yaml"), operator).unwrap();
}
