//! `cargo xtask scenario`: a disaster as it would be, on sites of real services. Words come in; figures and a verdict go out.

mod children;
mod disaster;
mod obstacles;
mod sites;
mod soak;
mod traps;
mod world;

use std::path::{Path, PathBuf};

use crate::failure::Failure;

pub const USAGE: &str = "\
usage: cargo xtask scenario disaster|traps|obstacles [OPTIONS]
       cargo xtask soak disaster [--seeds N] [OPTIONS]

Two sites of the lab, clients at north, replication to south; north is destroyed at a random moment, south is promoted, and asked
with the real clients for everything that north had acknowledged.

`traps` prepares north with everything that is known to go wrong silently (an image without bytes, an overlay called raw, a volume
without its record, operations under way and more), and looks at what became of each at south.

`obstacles` breaks at south what a failover needs: its dry run must name all of it, and the failover must stop at each with a
sentence and go on after the cure.

  --seed N         what the clients do, and when disaster strikes (1)
  --every SECONDS  between two recovery points (60)
  --drill          a drill before, beside both living sites, which must not change them
  --release        farsite as it is released; a debug build otherwise
  --seeds N        of a soak: 1 to N (20), those that have passed before left out
  --keep           leave both sites, the store and the keys as they are in the end
  --folder FOLDER  where all of it is (target/scenario)
";

/// What was asked for.
pub struct Options {
    pub seed: u64,
    pub seeds: u64,
    pub every_s: u64,
    pub release: bool,
    pub drill: bool,
    pub keep: bool,
    pub folder: PathBuf,
}

pub fn scenario(root: &Path, words: &[&str]) -> Result<(), Failure> {
    match words {
        ["disaster", rest @ ..] => disaster::disaster(root, &parse(root, rest)?),
        ["traps", rest @ ..] => traps::traps(root, &parse(root, rest)?),
        ["obstacles", rest @ ..] => obstacles::obstacles(root, &parse(root, rest)?),
        _ => Err(Failure::usage(
            "which scenario? there are `disaster`, `traps` and `obstacles`".to_owned(),
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
    let mut options = Options {
        seed: 1,
        seeds: 20,
        every_s: 60,
        release: false,
        drill: false,
        keep: false,
        folder: root.join("target/scenario"),
    };
    let wrong = |what: String| Failure::usage(what, USAGE);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| wrong(format!("`{word}` needs a value")));
        match *word {
            "--release" => options.release = true,
            "--drill" => options.drill = true,
            "--keep" => options.keep = true,
            "--seed" => options.seed = number(value()?)?,
            "--seeds" => options.seeds = number(value()?)?,
            "--every" => options.every_s = number(value()?)?,
            "--folder" => options.folder = PathBuf::from(value()?),
            _ => return Err(wrong(format!("not understood: `{word}`"))),
        }
    }
    Ok(options)
}

fn number(text: &str) -> Result<u64, Failure> {
    text.parse()
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| Failure::usage(format!("`{text}` is no number"), USAGE))
}
