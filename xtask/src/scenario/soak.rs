//! The scenario again and again with other seeds. Each seed's result is a line in a file, so that a soak that was cut off goes on
//! where it was. What must hold: all results in a file are of one source tree and of the same options, which its head names.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::tree::tree;
use super::{Options, Storage};
use crate::failure::Failure;

/// What a seed's line says behind its number.
const COLUMNS: &str = "seed\tresult\treported_rpo_s\ttrue_loss_s\trto_s\n";

pub fn soak(root: &Path, seeds: u64, options: &Options) -> Result<(), Failure> {
    let folder = root.join("target/soak");
    let storage = match options.storage {
        Storage::Ceph => "ceph",
        Storage::Share => "share",
    };
    let file = folder.join(format!("disaster-{storage}.tsv"));
    let fail = |e: std::io::Error| {
        Failure::new(format!("{}: {e}", file.display()), "look at rights and space there")
    };
    fs::create_dir_all(&folder).map_err(fail)?;
    let head = head(root, options)?;
    let mut done = match fs::read_to_string(&file) {
        Ok(earlier) if earlier.starts_with(&head) => earlier,
        Ok(earlier) => {
            let aside = aside(&file);
            fs::rename(&file, &aside).map_err(fail)?;
            let said: Vec<&str> = earlier.lines().take_while(|line| line.starts_with('#')).collect();
            eprintln!(
                "begun anew, because the results so far are of another tree or of other options:\n  they: {}\n  now:  {}\n  they are kept in {}",
                if said.is_empty() { "they do not say".to_owned() } else { said.join(" ") },
                head.lines().take(2).collect::<Vec<_>>().join(" "),
                aside.display()
            );
            head.clone()
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => head.clone(),
        Err(e) => return Err(fail(e)),
    };
    let xtask = std::env::current_exe().map_err(fail)?;
    for seed in 1..=seeds {
        if done.lines().any(|line| line.starts_with(&format!("{seed}\tok"))) {
            continue;
        }
        let log = folder.join(format!("{storage}-{seed}.log"));
        let said = fs::File::create(&log).map_err(fail)?;
        eprintln!("== seed {seed} of {seeds}; its log is {}", log.display());
        let mut one = Command::new(&xtask);
        one.args(["scenario", "disaster", "--seed", &seed.to_string()]).args(words(options));
        one.arg("--folder").arg(&options.folder);
        let output = one.stdin(Stdio::null()).stderr(said).output().map_err(fail)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        fs::File::options()
            .append(true)
            .open(&log)
            .and_then(|mut log| log.write_all(text.as_bytes()))
            .map_err(fail)?;
        // Farsite is built for each seed: of what is there then.
        if self::head(root, options)? != head {
            return Err(Failure::new(
                format!(
                    "the source tree was changed while seed {seed} ran: of what its result is, is not known"
                ),
                format!("{} has those before it; start the soak again", file.display()),
            ));
        }
        let mut line = format!("{seed}\t{}", if output.status.success() { "ok" } else { "FAILED" });
        for figure in ["reported_rpo_s", "true_loss_s", "rto_s"] {
            let _ = write!(line, "\t{}", figure_of(&text, figure).unwrap_or("-"));
        }
        eprintln!("   {line}");
        let others: Vec<&str> =
            done.lines().filter(|other| !other.starts_with(&format!("{seed}\t"))).collect();
        done = others.join("\n") + "\n" + &line + "\n";
        let partial = file.with_extension("new");
        fs::write(&partial, &done).and_then(|()| fs::rename(&partial, &file)).map_err(fail)?;
    }
    print!("{done}");
    match done.lines().filter(|line| line.contains("\tFAILED")).count() {
        0 => Ok(()),
        n => {
            Err(Failure::new(format!("{n} seeds failed"), format!("their logs are in {}", folder.display())))
        }
    }
}

/// The options that a result depends on, as they are typed.
fn words(options: &Options) -> Vec<String> {
    let mut words = vec!["--every".to_owned(), options.every_s.to_string()];
    for (wanted, word) in [
        (options.storage == Storage::Ceph, "--ceph"),
        (options.release, "--release"),
        (options.drill, "--drill"),
    ] {
        words.extend(wanted.then(|| word.to_owned()));
    }
    words
}

/// What a file of results begins with.
fn head(root: &Path, options: &Options) -> Result<String, Failure> {
    Ok(format!("# commit {}\n# options {}\n{COLUMNS}", tree(root)?, words(options).join(" ")))
}

/// The first name beside it that nothing has.
fn aside(file: &Path) -> PathBuf {
    let names = (1_u32..).map(|n| file.with_extension(format!("{n}.tsv")));
    names.into_iter().find(|name| !name.exists()).unwrap_or_else(|| file.with_extension("old.tsv"))
}

/// `"rto_s": 20.1,` in what a scenario printed.
fn figure_of<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let rest = text.split_once(&format!("\"{name}\": "))?.1;
    rest.split([',', '\n']).next().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_by_its_name() {
        let text = "{\n  \"reported_rpo_s\": 14.4,\n  \"rto_s\": 20.1\n}";
        assert_eq!(
            (figure_of(text, "reported_rpo_s"), figure_of(text, "rto_s")),
            (Some("14.4"), Some("20.1"))
        );
        assert_eq!(figure_of(text, "true_loss_s"), None);
    }

    #[test]
    fn what_a_result_depends_on_is_in_the_head_and_where_it_lies_is_not() {
        let mut options = Options::new("/one".into(), Storage::Ceph);
        let plain = words(&options);
        assert_eq!(plain, ["--every", "60", "--ceph"]);
        options.folder = "/another".into();
        assert_eq!(words(&options), plain);
        options.drill = true;
        assert_ne!(words(&options), plain);
    }

    #[test]
    fn results_of_another_tree_are_kept_under_a_name_that_nothing_has() {
        let folder = std::env::temp_dir().join(format!("farsite-xtask-soak-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("disaster-share.tsv");
        assert_eq!(aside(&file), folder.join("disaster-share.1.tsv"));
        fs::write(folder.join("disaster-share.1.tsv"), "").unwrap();
        assert_eq!(aside(&file), folder.join("disaster-share.2.tsv"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
