//! `farsite demo-north`: the users of the northern site. Rows, pages and images are written without end; each is
//! promised, outside the site, only after it was durable there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::acknowledged::{Book, Ink, now_ms};
use super::database::{Connection, Kind};
use super::freeze::Freeze;
use super::page::{Counter, PAGE_BYTES};
use super::seeded::Seeded;
use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};

/// A heartbeat row and a counter page in each volume this often.
const TICK: Duration = Duration::from_millis(100);
/// How often a wish to freeze is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// Random pages beside the counter page, each tick.
const PAGES_A_TICK: u64 = 3;
/// One tick in so many brings a new image.
const IMAGE_IN: u64 = 25;
pub const VOLUMES: usize = 3;
const VOLUME_BYTES: u64 = 32 << 20;
/// The part of a volume that is in use: the rest are holes.
const USED_BYTES: u64 = 6 << 20;
const IMAGE_BYTES: u64 = 512 << 10;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The northern site's folder.
    #[arg(long)]
    site: PathBuf,
    /// Where promises are written; outside the site.
    #[arg(long)]
    promises: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    sqlite: bool,
    /// The demo that started this; when it has gone, so does this.
    #[arg(long)]
    parent: i32,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let kind = if args.sqlite { Kind::Sqlite } else { Kind::Mariadb };
    let mut users = Users::new(&args, kind).await.map_err(Failure::failed)?;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = context.cancel.cancelled() => return Ok(DONE),
        }
        if rustix::process::getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != args.parent) {
            return Err(Failure::failed("the demo that started this has gone"));
        }
        let now = Instant::now();
        let frozen = users.freeze.is_frozen(now).map_err(Failure::io("the handshake of the freeze"))?;
        if now >= next {
            next = now + TICK;
            users.tick(frozen).await.map_err(Failure::failed)?;
        }
    }
}

struct Users {
    kind: Kind,
    site: PathBuf,
    database: Connection,
    freeze: Freeze,
    seeded: Seeded,
    volumes: Vec<(String, File)>,
    tick: u64,
    counter: u64,
    heartbeat: Ink,
    pages: Ink,
    images: Ink,
}

impl Users {
    async fn new(args: &Args, kind: Kind) -> Result<Self, String> {
        let ink = |book| Ink::open(&args.promises, book).map_err(|error| error.to_string());
        let mut volumes = Vec::new();
        for path in files(&args.site.join("cinder/volumes"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let file = File::options().read(true).write(true).open(&path).map_err(|e| at(&path, &e))?;
            volumes.push((name, file));
        }
        Ok(Self {
            kind,
            database: Connection::open(kind, &kind.place(&args.site)).await?,
            freeze: Freeze::new(&args.site),
            site: args.site.clone(),
            seeded: Seeded::new(args.seed ^ 0x0075_7365_7273),
            volumes,
            tick: 0,
            counter: 0,
            heartbeat: ink(Book::Heartbeat)?,
            pages: ink(Book::Volumes)?,
            images: ink(Book::Images)?,
        })
    }

    async fn tick(&mut self, frozen: bool) -> Result<(), String> {
        self.tick += 1;
        let table = self.kind.table("demo", "heartbeat");
        let statement = format!("INSERT INTO {table} VALUES ({}, {})", self.tick, now_ms());
        self.database.execute(&statement).await?;
        promise(&mut self.heartbeat, "heartbeat", &self.tick.to_string())?;
        if !frozen {
            self.write_volumes()?;
        }
        if self.seeded.below(IMAGE_IN) == 0 {
            let (id, sha512) = add_image(&mut self.database, self.kind, &self.site, &mut self.seeded).await?;
            promise(&mut self.images, &id, &sha512)?;
        }
        Ok(())
    }

    /// All volumes go from one counter to the next between two looks at the freeze: a frozen moment has one counter.
    fn write_volumes(&mut self) -> Result<(), String> {
        self.counter += 1;
        let page = Counter { counter: self.counter, at_ms: now_ms() }.page();
        for (name, file) in &self.volumes {
            let write =
                |bytes: &[u8], offset: u64| file.write_all_at(bytes, offset).map_err(|e| e.to_string());
            for _ in 0..PAGES_A_TICK {
                let slot = 1 + self.seeded.below(USED_BYTES / PAGE_BYTES as u64 - 1);
                write(&self.seeded.compressible(PAGE_BYTES), slot * PAGE_BYTES as u64)?;
            }
            write(&page, 0)?;
            file.sync_data().map_err(|error| format!("{name}: {error}"))?;
        }
        for (name, _) in &self.volumes {
            promise(&mut self.pages, name, &self.counter.to_string())?;
        }
        Ok(())
    }
}

fn promise(ink: &mut Ink, what: &str, value: &str) -> Result<(), String> {
    ink.write(what, value).map_err(|error| format!("writing a promise down: {error}"))
}

fn at(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// The regular files of a folder, in order of name.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| at(folder, &error))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.is_file() && !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
        })
        .collect();
    files.sort();
    Ok(files)
}

/// The file first, durable, and the row after it, as Glance does. Returns id and SHA-512.
pub async fn add_image(
    database: &mut Connection,
    kind: Kind,
    site: &Path,
    seeded: &mut Seeded,
) -> Result<(String, String), String> {
    let id = seeded.uuid();
    let length = IMAGE_BYTES / 2 + seeded.below(IMAGE_BYTES);
    let bytes = seeded.compressible(length as usize);
    let folder = site.join("glance/images");
    let path = folder.join(&id);
    // Glance's own way: written beside its name, then given it.
    let partial = folder.join(format!(".{id}.part"));
    let save = || {
        let mut file = File::create(&partial)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, &path)?;
        File::open(&folder)?.sync_all()
    };
    save().map_err(|error: std::io::Error| at(&path, &error))?;
    let sha512 = sha512(&bytes);
    let table = kind.table("glance", "images");
    database
        .execute(&format!(
            "INSERT INTO {table} VALUES ('{id}', 'image {}', 'active', {length}, 'sha512', '{sha512}', 0)",
            &id[..8]
        ))
        .await?;
    Ok((id, sha512))
}

pub fn sha512(bytes: &[u8]) -> String {
    farsite_store::hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, bytes).as_ref())
}

/// What stands at the site before its users come: volumes, images, keys. Returns what was promised of the keys.
pub async fn furnish(
    site: &Path,
    kind: Kind,
    promises: &Path,
    seeded: &mut Seeded,
) -> Result<BTreeMap<String, String>, String> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| at(&path, &error)
    };
    let mut database = Connection::open(kind, &kind.place(site)).await?;
    for statement in kind.schema() {
        database.execute(&statement).await.map_err(|why| format!("{statement}: {why}"))?;
    }
    let mut images = Ink::open(promises, Book::Images).map_err(io(promises))?;
    for _ in 0..3 {
        let (id, sha512) = add_image(&mut database, kind, site, seeded).await?;
        promise(&mut images, &id, &sha512)?;
    }
    for _ in 0..VOLUMES {
        let id = seeded.uuid();
        let path = site.join("cinder/volumes").join(format!("volume-{id}"));
        let file = File::create(&path).map_err(io(&path))?;
        file.write_all_at(&seeded.compressible((USED_BYTES / 2) as usize), PAGE_BYTES as u64)
            .map_err(io(&path))?;
        file.write_all_at(&Counter { counter: 0, at_ms: now_ms() }.page(), 0).map_err(io(&path))?;
        file.set_len(VOLUME_BYTES).and_then(|()| file.sync_all()).map_err(io(&path))?;
        let table = kind.table("cinder", "volumes");
        database
            .execute(&format!(
                "INSERT INTO {table} VALUES ('{id}', 'volume {}', {VOLUME_BYTES}, 'in-use')",
                &id[..8]
            ))
            .await?;
    }
    let mut keys = BTreeMap::new();
    let mut book = Ink::open(promises, Book::Keys).map_err(io(promises))?;
    for folder in ["fernet-keys", "credential-keys"] {
        for number in 0..2 {
            let path = site.join("keystone").join(folder).join(number.to_string());
            let mut key = [0; 32];
            seeded.fill(&mut key);
            std::fs::write(&path, farsite_store::hex::encode(&key)).map_err(io(&path))?;
            let name = format!("{folder}/{number}");
            let sum = sha512(farsite_store::hex::encode(&key).as_bytes());
            promise(&mut book, &name, &sum)?;
            keys.insert(name, sum);
        }
    }
    Ok(keys)
}
