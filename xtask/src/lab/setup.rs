//! What a site needs once: folders, databases, schemas, keys, the first admin; and later, when Keystone answers, the
//! service users and the catalog. Every step may be run again: an `up` that was cut off begins with it anew.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process;
use super::services::Tools;
use super::site::{self, Site};
use crate::failure::Failure;
use crate::step;

/// The mark of one-off commands; no service has this name.
pub const MARK: &str = "setup";
/// On two cores that also do something else.
const LIMIT: Duration = Duration::from_mins(5);
const DATABASES: [&str; 3] = ["keystone", "glance", "cinder"];
/// Says that the schemas are there; beside it `.seeded`.
const SCHEMAS_DONE: &str = ".schemas";
const SEEDED: &str = ".seeded";
const KEYSTONE_SETUP: &str = include_str!("../../lab/keystone_setup.py");
const SEED: &str = include_str!("../../lab/seed.py");

/// The folders that services expect to find.
pub fn make_folders(site: &Site) -> Result<(), Failure> {
    let folders = [
        "etc",
        "tmp",
        "log/rabbitmq",
        "run",
        "home",
        "rabbit",
        "glance/images",
        "glance/staging",
        "glance/tasks",
        "glance/cache",
        "nfs",
        "cinder/state",
        "cinder/lock",
        "cinder/conversion",
        "cinder/coordination",
    ];
    folders.iter().try_for_each(|folder| make_folder(&site.below(folder)))
}

pub fn make_folder(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| {
        Failure::new(
            format!("{} cannot be made: {error}", folder.display()),
            "see whether the disk is full (df -h)",
        )
    })
}

/// MariaDB's data folder, before its server starts for the first time.
pub fn mariadb_data(site: &Site, tools: &Tools) -> Result<(), Failure> {
    let data = site.below("mariadb");
    if data.join("mysql").is_dir() {
        return Ok(());
    }
    // Renamed when it is whole.
    let new = site.below("mariadb.new");
    let _ = fs::remove_dir_all(&new);
    make_folder(&new)?;
    let datadir = format!("--datadir={}", new.display());
    // With the accounts from the start: a server that has none refuses HAProxy's checks.
    let accounts = script(site, "accounts.sql", &accounts(&site.password("db")))?;
    let accounts = format!("--extra-file={}", accounts.display());
    // root without a password, through the socket, and only for the machine's root: nobody through the network.
    let temporary = format!("--tmpdir={}", site.below("tmp").display());
    let words = [
        "mariadb-install-db",
        "--no-defaults",
        "--user=root",
        &datadir,
        &temporary,
        "--skip-test-db",
        "--auth-root-authentication-method=socket",
        "--auth-root-socket-user=root",
        &accounts,
    ];
    run(site, tools, "mariadb-install", &words, LIMIT, |_| ())?;
    fs::rename(&new, &data).map_err(|error| {
        Failure::new(
            format!("{} cannot be renamed to {}: {error}", new.display(), data.display()),
            "a data folder that is half there is moved away by hand",
        )
    })
}

fn accounts(password: &str) -> String {
    let statements = DATABASES.map(|name| {
        format!(
            "CREATE DATABASE {name} CHARACTER SET utf8mb3 COLLATE utf8mb3_general_ci;\n\
             CREATE USER '{name}'@'%' IDENTIFIED BY '{password}';\n\
             GRANT ALL ON {name}.* TO '{name}'@'%';\n"
        )
    });
    // The server that reads this begins without its tables of rights.
    format!("FLUSH PRIVILEGES;\n{}", statements.concat())
}

/// Its databases are those of a site that was set up once.
pub fn mark_as_done(site: &Site) -> Result<(), Failure> {
    [SCHEMAS_DONE, SEEDED].iter().try_for_each(|mark| {
        fs::write(site.below(mark), "").map_err(|error| {
            Failure::new(
                format!("{}: {error}", site.below(mark).display()),
                "see whether the disk is full (df -h)",
            )
        })
    })
}

pub fn has_schemas(site: &Site) -> bool {
    site.below(SCHEMAS_DONE).exists()
}

pub fn is_seeded(site: &Site) -> bool {
    site.below(SEEDED).exists()
}

/// What a new site needs in Keystone and Cinder is made again: something was added.
pub fn forget_seeded(site: &Site) -> Result<(), Failure> {
    let file = site.below(SEEDED);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(format!("{} cannot be deleted: {error}", file.display()), "delete it by hand"))
        }
        _ => Ok(()),
    }
}

/// The schemas of the three databases, Keystone's keys and first admin. MariaDB answers.
pub fn schemas(site: &Site, tools: &Tools) -> Result<(), Failure> {
    let etc = |name: &str| site.etc().join(name).display().to_string();
    let (keystone, glance, cinder) =
        (etc("keystone/keystone.conf"), etc("glance/glance-api.conf"), etc("cinder/cinder.conf"));
    let url = site.url(site::KEYSTONE, "/v3");
    let script = script(site, "keystone_setup.py", KEYSTONE_SETUP)?;
    let script = script.display().to_string();
    let admin = site.password("admin");
    let keystone_words = ["python", &script, &keystone, &url, site.region(), &admin];
    let glance_words = ["glance-manage", "--config-file", &glance, "db_sync"];
    let cinder_words = ["cinder-manage", "--config-file", &cinder, "db", "sync"];
    // Each waits for the disk more than for a processor.
    std::thread::scope(|scope| {
        let others =
            [("schema-keystone", keystone_words.as_slice()), ("schema-glance", glance_words.as_slice())]
                .map(|(log, words)| scope.spawn(move || run(site, tools, log, words, LIMIT, |_| ())));
        let cinder = run(site, tools, "schema-cinder", &cinder_words, LIMIT, |_| ());
        let mut result = cinder;
        for other in others {
            result = result.and(joined(other.join()));
        }
        result
    })?;
    mark(site, SCHEMAS_DONE)
}

/// Service users, catalog and volume type. Keystone answers, and Cinder does soon.
pub fn seed(site: &Site, tools: &Tools, clouds: &Path) -> Result<(), Failure> {
    let script = script(site, "seed.py", SEED)?.display().to_string();
    run(site, tools, "seed", &["python", &script], LIMIT, |command| {
        command
            .env("OS_CLIENT_CONFIG_FILE", clouds)
            .env("OS_CLOUD", site.name)
            .env("SERVICE_PASSWORD", site.password("service"))
            .env("GLANCE_URL", site.url(site::GLANCE, ""))
            .env("CINDER_URL", site.url(site::CINDER, "/v3"))
            .env("VOLUME_TYPES", if site.has_ceph() { "nfs ceph" } else { "nfs" });
    })?;
    mark(site, SEEDED)
}

/// Puts a script into a file: the program carries its text, not its path.
pub fn script(site: &Site, name: &str, text: &str) -> Result<PathBuf, Failure> {
    let file = site.run().join(name);
    fs::write(&file, text).map(|()| file.clone()).map_err(|error| {
        Failure::new(
            format!("{} cannot be written: {error}", file.display()),
            "see whether the disk is full (df -h)",
        )
    })
}

/// Runs a command of the site to its end, its output going to `log/LOG.out`, of which an error shows the end. `more`
/// may set variables.
pub fn run(
    site: &Site,
    tools: &Tools,
    log: &str,
    words: &[&str],
    limit: Duration,
    more: impl FnOnce(&mut Command),
) -> Result<(), Failure> {
    let file = process::out_file(site, log);
    let program = words.first().copied().unwrap_or_default();
    let failed = |how: String| {
        let text = fs::read_to_string(&file).unwrap_or_default();
        Failure::new(
            format!("{}: {program} {how}\n{}", site.name, last_lines(&text, 15).trim_end()),
            format!("all of what it said is in {}; `lab up` begins this step again", file.display()),
        )
    };
    let out = File::create(&file).map_err(|error| failed(format!("cannot write its log: {error}")))?;
    let mut command = process::command(site, MARK, program, &tools.path);
    command.args(&words[1..]).env("XDG_CACHE_HOME", tools.venv.join("cache"));
    command.stdout(out.try_clone().map_err(|error| failed(error.to_string()))?).stderr(out);
    more(&mut command);
    let mut child = command.spawn().map_err(|error| failed(format!("could not be started: {error}")))?;
    match step::wait(&mut child, limit) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(failed(format!("failed ({status})"))),
        Ok(None) => Err(failed(format!("was stopped: it ran past {} s", limit.as_secs()))),
        Err(error) => Err(failed(format!("could not be waited for: {error}"))),
    }
}

pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines[from..].iter().flat_map(|line| ["    ", *line, "\n"]).collect()
}

pub fn joined<T>(result: std::thread::Result<Result<T, Failure>>) -> Result<T, Failure> {
    result.unwrap_or_else(|_| Err(Failure::new("a thread of the lab panicked", "this is a bug: see above")))
}

/// Says that something is done, in a file of this name below the site's folder.
pub fn mark(site: &Site, name: &str) -> Result<(), Failure> {
    let file = site.below(name);
    File::create(&file).map(drop).map_err(|error| {
        Failure::new(
            format!("{} cannot be made: {error}", file.display()),
            "see whether the disk is full (df -h)",
        )
    })
}
