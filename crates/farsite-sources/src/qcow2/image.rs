//! A qcow2 image as `qemu-img` sees it: a path comes in; its size, its bitmaps and what it is made of go out, and bitmaps
//! are added and removed. What must hold: an image that another process has open for writing is never touched; nothing
//! outside of the image's own folder is opened because a header says so.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use crate::SourceError;
use crate::commands::{self, Finished};
use crate::guards::RemovedFolder;

/// A chain of overlays that is longer is not meant.
const CHAIN: usize = 64;
/// Of our bitmaps: the block size of most policies, and the cluster size of most images.
pub(super) const GRANULARITY: &str = "65536";
/// The smallest piece of a virtual disk.
pub(super) const SECTOR: u64 = 512;
/// The bitmap of an empty image in which the last sector is dirty.
pub(super) const CANARY: &str = "canary";

/// A dirty bitmap that is kept in an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Bitmap {
    pub(crate) name: String,
    #[serde(default)]
    flags: Vec<String>,
}

impl Bitmap {
    /// It records every write, and was closed as it should be.
    pub(crate) fn is_good(&self) -> bool {
        let has = |flag: &str| self.flags.iter().any(|there| there == flag);
        has("auto") && !has("in-use")
    }
}

/// What an image's header says.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) size_bytes: u64,
    pub(crate) bitmaps: Vec<Bitmap>,
    /// It has a backing file: what is written to that is recorded nowhere.
    pub(crate) is_overlay: bool,
}

impl Seen {
    /// Names of its bitmaps, and whether they are good.
    pub(crate) fn named_bitmaps(&self) -> Vec<(String, bool)> {
        self.bitmaps.iter().map(|bitmap| (bitmap.name.clone(), bitmap.is_good())).collect()
    }
}

/// Why an image cannot be used.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Another process has it open for writing.
    Open(String),
    Other(SourceError),
}

impl Trouble {
    pub(crate) fn into_error(self, path: &Path) -> SourceError {
        match self {
            Self::Other(error) => error,
            Self::Open(why) => SourceError::new(
                format!("reading {}", path.display()),
                format!(
                    "another process has it open, and behind that process's back it cannot be read right{why}"
                ),
            )
            .hint("give the item a `qmp:` that names that process's monitor, or stop it while the item is captured (`hooks`)"),
        }
    }
}

impl From<SourceError> for Trouble {
    fn from(error: SourceError) -> Self {
        Self::Other(error)
    }
}

/// A qcow2 image by its path.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    /// Longest time that one command may take.
    pub(crate) limit: Duration,
}

impl Image {
    pub(crate) fn new(path: &Path, limit: Duration) -> Self {
        // With a leading slash no part of it is taken for a protocol.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { path, limit }
    }

    fn what(&self, doing: &str) -> String {
        format!("{doing} {}", self.path.display())
    }

    /// Its header and those of the images below it. Fails when another process writes to it.
    pub(crate) fn look(&self) -> Result<Seen, Trouble> {
        let info = info(self, "qcow2")?;
        let refuse = |why: &str, hint: &str| {
            Err(Trouble::Other(SourceError::new(self.what("reading"), why.to_owned()).hint(hint)))
        };
        if info.encrypted {
            return refuse(
                "it is encrypted, and its key is not asked for",
                "leave `format:` out: its file is copied as it is",
            );
        }
        let mut below = info.clone();
        let mut at = self.path.clone();
        for _ in 0..CHAIN {
            let data = below.format_specific.as_ref().map(|specific| &specific.data);
            if data.is_some_and(|data| data.data_file.is_some()) {
                return refuse(
                    "its data stand in another file",
                    "move them into the image (`qemu-img convert`)",
                );
            }
            let Some(name) = &below.full_backing_filename else {
                let data = info.format_specific.map(|specific| specific.data).unwrap_or_default();
                return Ok(Seen {
                    size_bytes: info.virtual_size,
                    bitmaps: data.bitmaps,
                    is_overlay: at != self.path,
                });
            };
            // Somebody who can upload an image could otherwise have any file of this host read.
            let next = PathBuf::from(name);
            let is_beside = next.is_absolute() && next.parent() == self.path.parent();
            let format = below.backing_filename_format.clone();
            let (true, Some(format)) =
                (is_beside, format.filter(|format| matches!(&**format, "qcow2" | "raw")))
            else {
                return refuse(
                    &format!("its backing file {name} is not a named qcow2 or raw image in the same folder"),
                    "only images beside it are read; `qemu-img rebase` or `qemu-img convert` make it so",
                );
            };
            at = next;
            below = info_of(&at, &format, self.limit)?;
        }
        refuse("its chain of backing files has no end", "look at it with `qemu-img info --backing-chain`")
    }

    /// Makes an empty one.
    pub(super) fn create(&self, size_bytes: u64) -> Result<(), SourceError> {
        let mut args: Vec<OsString> = ["create", "-q", "-f", "qcow2"].iter().map(OsString::from).collect();
        args.extend([self.path.clone().into(), size_bytes.to_string().into()]);
        let done = finished(&self.what("making"), "qemu-img", &args, self.limit);
        done.map(drop).map_err(|trouble| trouble.into_error(&self.path))
    }

    /// Its bitmaps alone; nothing else is looked at.
    pub(crate) fn bitmaps(&self) -> Result<Vec<Bitmap>, Trouble> {
        let info = info(self, "qcow2")?;
        Ok(info.format_specific.map(|specific| specific.data.bitmaps).unwrap_or_default())
    }

    /// Adds a bitmap that records from now on. Its last sector counts as written from the start: a bitmap without that mark
    /// was cleared, or the image was made shorter meanwhile, which bitmaps do not survive.
    pub(crate) fn add_bitmap(&self, name: &str, size_bytes: u64, scratch: &Path) -> Result<(), Trouble> {
        let folder = RemovedFolder::create(scratch, "bitmap")?;
        let canary = canary(&folder, size_bytes, self.limit)?;
        let args = ["bitmap", "--add", "--merge", CANARY, "-g", GRANULARITY, "-F", "qcow2", "-b"];
        let mut args: Vec<OsString> = args.iter().map(OsString::from).collect();
        args.extend([
            canary.into_os_string(),
            "-f".into(),
            "qcow2".into(),
            self.path.clone().into(),
            name.into(),
        ]);
        finished(&self.what("adding a bitmap to"), "qemu-img", &args, self.limit)?;
        Ok(())
    }

    pub(crate) fn remove_bitmap(&self, name: &str) -> Result<(), Trouble> {
        let args = ["bitmap", "--remove", "-f", "qcow2"];
        let mut args: Vec<OsString> = args.iter().map(OsString::from).collect();
        args.extend([self.path.clone().into(), name.into()]);
        finished(&self.what("removing a bitmap of"), "qemu-img", &args, self.limit)?;
        Ok(())
    }
}

/// An empty image of a size, in a folder, with a bitmap in which the last sector is dirty.
fn canary(folder: &RemovedFolder, size_bytes: u64, limit: Duration) -> Result<PathBuf, Trouble> {
    let image = Image { path: folder.path().join("canary.qcow2"), limit };
    image.create(size_bytes)?;
    let path = image.path;
    let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let run = |program: &str, before: &[&str], after: &[&str]| {
        let mut all = args(before);
        all.push(path.clone().into());
        all.extend(args(after));
        finished("preparing a bitmap", program, &all, limit)
    };
    run("qemu-img", &["bitmap", "--add", "-g", GRANULARITY, "-f", "qcow2"], &[CANARY])?;
    let write = format!("write -z {} {SECTOR}", size_bytes - SECTOR);
    run("qemu-io", &["-f", "qcow2", "-c", &write], &[])?;
    Ok(path)
}

/// A part of what `qemu-img info --output=json` says.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    full_backing_filename: Option<String>,
    backing_filename_format: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Debug, Clone, Deserialize)]
struct Specific {
    #[serde(default)]
    data: Data,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Data {
    #[serde(default)]
    bitmaps: Vec<Bitmap>,
    data_file: Option<String>,
}

fn info(image: &Image, format: &str) -> Result<Info, Trouble> {
    info_of(&image.path, format, image.limit)
}

fn info_of(path: &Path, format: &str, limit: Duration) -> Result<Info, Trouble> {
    let what = format!("reading {}", path.display());
    let args: Vec<OsString> =
        ["info", "--output=json", "-f", format].iter().map(OsString::from).chain([path.into()]).collect();
    let said = finished(&what, "qemu-img", &args, limit)?;
    serde_json::from_str(&said.stdout).map_err(|error| {
        Trouble::Other(SourceError::new(what, format!("what qemu-img says of it makes no sense: {error}")))
    })
}

/// Runs a program of QEMU to its good end.
fn finished(what: &str, program: &str, args: &[OsString], limit: Duration) -> Result<Finished, Trouble> {
    let mut command: Command = commands::tied(&commands::require(&[program], "qemu-utils")?);
    command.args(args);
    let done = commands::run_now(what, command, limit)?;
    // QEMU has no exit status of its own for this.
    if !done.status.success() && done.stderr.contains("Is another process using the image") {
        return Err(Trouble::Open(commands::shown(&done.stderr)));
    }
    Ok(done.success(what)?)
}
