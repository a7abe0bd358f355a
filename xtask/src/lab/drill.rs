//! `lab drill`: south's services once more, on data that a drill has restored, in a network namespace of their own: at the same
//! addresses as south, which goes on beside it, and with no way to it or to anything else. Nothing of it is left behind by
//! `stop`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::report::Report;
use super::site::{self, Site};
use super::{configuration, ending, filer, install, setup, stop};
use crate::failure::Failure;
use crate::programs::{self, Program};
use crate::step::{minutes, run};

pub const USAGE: &str = "\
usage: cargo xtask lab drill COMMAND --folder FOLDER

  start --socket S --images I --share C --keys K
                      south's services on the database at the socket S, Glance's images in I, the share's files in C, and
                      Keystone's two folders of keys in K; ends when they answer
  status              an error unless all of them answer
  run COMMAND…        a command in the network of the drill
  stop                ends them, and takes away their network and FOLDER

Below FOLDER is what the services themselves write.
";

/// All but the database, which the drill itself runs.
const SERVICES: [&str; 9] = [
    "haproxy",
    "memcached",
    "epmd",
    "rabbitmq",
    "keystone",
    "glance",
    "cinder-api",
    "cinder-scheduler",
    "cinder-volume",
];

/// What a drill has restored.
struct Data {
    socket: PathBuf,
    images: PathBuf,
    share: PathBuf,
    keys: PathBuf,
}

pub fn drill(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let usage = |what: &str| Failure::usage(what.to_owned(), USAGE);
    let (command, mut rest) = match words {
        [command, rest @ ..] => (*command, rest.to_vec()),
        [] => return Err(usage("which command of the drill?")),
    };
    let mut option = |name: &str| -> Result<PathBuf, Failure> {
        let at = rest.iter().position(|word| *word == name);
        match at.filter(|at| at + 1 < rest.len()) {
            Some(at) => {
                let value = PathBuf::from(rest[at + 1]);
                rest.drain(at..at + 2);
                Ok(value)
            }
            None => Err(usage(&format!("`drill {command}` needs {name}"))),
        }
    };
    let lab = option("--folder")?;
    let site = Site::named("south", &lab).ok_or_else(|| usage("there is no site south"))?;
    match command {
        "start" => {
            let data = Data {
                socket: option("--socket")?,
                images: option("--images")?,
                share: option("--share")?,
                keys: option("--keys")?,
            };
            start(root, &site.on_database(&data.socket), &data)
        }
        "status" => {
            let words: Vec<&str> =
                ["lab", "status", "south"].into_iter().chain(SERVICES).chain(["--folder"]).collect();
            inside(&lab, &own(&words, &lab)?)
        }
        "run" => inside(&lab, &rest.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()),
        "stop" => end(&site),
        other => Err(usage(&format!("the drill has no command `{other}`"))),
    }
}

fn start(root: &Path, site: &Site, data: &Data) -> Result<(), Failure> {
    programs::ensure(&root.join("xtask"), &[Program { name: "ip", package: "iproute2" }])?;
    let tools = install::ensure(root, false)?;
    setup::make_folders(site)?;
    let fail = |what: &str, e: std::io::Error| Failure::new(format!("{what}: {e}"), "was it restored?");
    // The services look for these at their own places.
    let images = site.images();
    let _ = fs::remove_dir(&images);
    if images.symlink_metadata().is_err() {
        symlink(&data.images, &images).map_err(|e| fail("linking the images", e))?;
    }
    configuration::write(site, &tools.venv)?;
    for keys in ["fernet-keys", "credential-keys"] {
        let mut copy = Command::new("cp");
        copy.args(["-aT", "--"]).arg(data.keys.join(keys)).arg(site.etc().join("keystone").join(keys));
        run(copy, minutes(1), "are Keystone's keys among the policy's files?")?;
    }
    setup::mark_as_done(site)?;
    filer::mount_share(site, &tools, &data.share)?;
    let name = network(site.lab());
    if !Path::new("/run/netns").join(&name).exists() {
        ip(&["netns", "add", &name])?;
    }
    ip(&["-n", &name, "link", "set", "lo", "up"])?;
    let words: Vec<&str> =
        ["lab", "start", "south"].into_iter().chain(SERVICES).chain(["--folder"]).collect();
    inside(site.lab(), &own(&words, site.lab())?)
}

fn end(site: &Site) -> Result<(), Failure> {
    let report = Report::new("drill");
    ending::kill_leftovers(site, &[setup::MARK])?;
    if site.folder().exists() {
        stop::down(site, false, &report)?;
    }
    let name = network(site.lab());
    if Path::new("/run/netns").join(&name).exists() {
        ip(&["netns", "delete", &name])?;
    }
    match fs::remove_dir_all(site.lab()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(format!("{}: {e}", site.lab().display()), "delete it by hand"))
        }
        _ => Ok(()),
    }
}

/// This program with these words and a path behind them.
fn own(words: &[&str], path: &Path) -> Result<Vec<String>, Failure> {
    let exe =
        std::env::current_exe().map_err(|e| Failure::new(format!("this program: {e}"), "build it again"))?;
    let words = words.iter().map(|word| (*word).to_owned());
    Ok([exe.display().to_string()].into_iter().chain(words).chain([path.display().to_string()]).collect())
}

/// A command in the drill's network; its own output, and its failure is ours.
fn inside(lab: &Path, words: &[String]) -> Result<(), Failure> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &network(lab)]).args(words);
    run(command, minutes(2), "see above; `lab drill stop` takes everything away")
}

fn ip(words: &[&str]) -> Result<(), Failure> {
    let mut command = Command::new("ip");
    command.args(words).stdin(Stdio::null());
    run(command, minutes(1), "network namespaces need root (ip-netns(8))")
}

fn network(lab: &Path) -> String {
    format!("farsite-drill-{}", site::tag(lab))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_drills_have_two_networks_and_a_name_that_fits() {
        let (one, other) = (network(Path::new("/a/1")), network(Path::new("/a/2")));
        assert_ne!(one, other);
        assert_eq!(one, network(Path::new("/a/1")));
        assert!(one.starts_with("farsite-drill-") && one.len() == 22, "{one}");
    }

    #[test]
    fn a_drill_without_its_data_is_wrong_usage() {
        let words = ["start", "--folder", "/x", "--socket", "/s"];
        assert_eq!(drill(Path::new("/"), &words).unwrap_err().exit_code(), 2);
        assert_eq!(drill(Path::new("/"), &["fly", "--folder", "/x"]).unwrap_err().exit_code(), 2);
    }
}
