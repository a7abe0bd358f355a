//! `cargo xtask scenario`: a disaster as it would be, on sites of real services. Words come in; figures and a verdict go out.

mod all;
pub mod children;
mod disaster;
mod guide;
mod keys;
mod obstacles;
mod sites;
mod soak;
mod traps;
mod tree;
mod users;
pub mod world;

use std::path::{Path, PathBuf};

use crate::failure::Failure;

pub const USAGE: &str = "\
usage: cargo xtask scenario disaster|traps|obstacles|users|keys|guide [OPTIONS]
       cargo xtask scenario all [--seed N] [--every SECONDS] [--release] [--folder FOLDER]
       cargo xtask soak disaster [--seeds N] [OPTIONS]

Two sites of the lab, clients at north, replication to south; north is destroyed at a random moment, south is promoted, and asked
with the real clients for everything that north had acknowledged.

`traps` prepares north with everything that is known to go wrong silently (an image without bytes, an overlay called raw, a volume
without its record, operations under way and more), and looks at what became of each at south.

`obstacles` breaks at south what a failover needs: its dry run must name all of it, and the failover must stop at each with a
sentence and go on after the cure.

`users`: deleting, extending, reverting, retyping, migrating, cloning succeed while Farsite holds versions of the volumes.

`keys`: Keystone's credential keys are rotated twice behind a point's back; the end of the log is then not promoted, the point is.

`guide` runs every command of docs/operator-guide.md, from two clouds to a passed drill.

`all` plays every one of them, on a share and what there is on Ceph, goes on after a failure, and ends with 1 when one failed.

  --seed N         what the clients do, and when disaster strikes (1)
  --every SECONDS  between two recovery points (60)
  --ceph           images and volumes in Ceph pools at both sites; in files of a share otherwise
  --drill          a drill before, beside both living sites, which must not change them
  --release        farsite as it is released; a debug build otherwise
  --built          the debug build that is there, whatever it was built for (by the tests, say): nothing is built
  --seeds N        of a soak: 1 to N (20), those that have passed on this commit with these options left out
  --keep           leave both sites, the store and the keys as they are in the end
  --folder FOLDER  where all of it is (target/scenario)
";

/// Where both sites keep images and volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Files of a share.
    Share,
    /// Images of Ceph pools.
    Ceph,
}

/// What was asked for.
pub struct Options {
    pub seed: u64,
    pub seeds: u64,
    pub every_s: u64,
    pub storage: Storage,
    pub release: bool,
    pub built: bool,
    pub drill: bool,
    pub keep: bool,
    pub folder: PathBuf,
}

impl Options {
    pub fn new(folder: PathBuf, storage: Storage) -> Self {
        Self {
            seed: 1,
            seeds: 20,
            every_s: 60,
            storage,
            release: false,
            built: false,
            drill: false,
            keep: false,
            folder,
        }
    }
}

pub fn scenario(root: &Path, words: &[&str]) -> Result<(), Failure> {
    match words {
        ["disaster", rest @ ..] => disaster::disaster(root, &parse(root, rest)?),
        ["traps", rest @ ..] => {
            let options = parse(root, rest)?;
            match options.storage {
                Storage::Ceph => Err(Failure::usage("the traps are those of a share".to_owned(), USAGE)),
                Storage::Share => traps::traps(root, &options),
            }
        }
        ["obstacles", rest @ ..] => obstacles::obstacles(root, &parse(root, rest)?),
        ["users", rest @ ..] => users::users(root, &parse(root, rest)?),
        ["keys", rest @ ..] => keys::keys(root, &parse(root, &[&["--every", "1800"], rest].concat())?),
        ["all", rest @ ..] => all::all(root, &parse(root, rest)?, rest),
        ["guide", rest @ ..] => guide::guide(root, &parse(root, rest)?),
        _ => Err(Failure::usage(
            "which scenario? there are `disaster`, `traps`, `obstacles`, `users`, `keys`, `guide` and `all`"
                .to_owned(),
            USAGE,
        )),
    }
}

pub fn soak(root: &Path, words: &[&str]) -> Result<(), Failure> {
    match words {
        ["disaster", rest @ ..] => {
            let options = parse(root, rest)?;
            soak::soak(root, options.seeds, &options)
        }
        _ => Err(Failure::usage("which soak? there is `disaster`".to_owned(), USAGE)),
    }
}

fn parse(root: &Path, words: &[&str]) -> Result<Options, Failure> {
    let mut options = Options::new(root.join("target/scenario"), Storage::Share);
    let wrong = |what: String| Failure::usage(what, USAGE);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| wrong(format!("`{word}` needs a value")));
        match *word {
            "--ceph" => options.storage = Storage::Ceph,
            "--release" => options.release = true,
            "--built" => options.built = true,
            "--drill" => options.drill = true,
            "--keep" => options.keep = true,
            "--seed" => options.seed = number(value()?)?,
            "--seeds" => options.seeds = number(value()?)?,
            "--every" => options.every_s = number(value()?)?,
            "--folder" => options.folder = absolute(value()?)?,
            _ => return Err(wrong(format!("not understood: `{word}`"))),
        }
    }
    Ok(options)
}

/// Services are started elsewhere and told of paths in it.
pub fn absolute(folder: &str) -> Result<PathBuf, Failure> {
    std::path::absolute(folder).map_err(|e| Failure::new(format!("{folder}: {e}"), "name another folder"))
}

fn number(text: &str) -> Result<u64, Failure> {
    text.parse()
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| Failure::usage(format!("`{text}` is no number"), USAGE))
}
