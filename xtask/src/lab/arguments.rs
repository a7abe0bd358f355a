//! The words behind `cargo xtask lab`.

use std::path::{Path, PathBuf};

use super::USAGE;
use super::services::{OPENSTACK, Service};
use super::site::{NAMES, Site};
use crate::failure::Failure;

#[derive(Debug)]
pub struct Arguments {
    /// Absolute.
    pub lab: PathBuf,
    pub command: Command,
}

#[derive(Debug)]
pub enum Command {
    /// What the lab runs, and nothing is started.
    Install {
        ceph: bool,
    },
    Up {
        sites: Vec<Site>,
        /// Those without a Ceph cluster get one.
        ceph: bool,
    },
    Down {
        sites: Vec<Site>,
        purge: bool,
    },
    Stop(Site, Vec<Service>),
    Start(Site, Vec<Service>),
    Destroy(Site),
    /// No site named: all sites, and whatever is found is no error.
    Status {
        site: Option<Site>,
        services: Vec<Service>,
        json: bool,
    },
    Smoke(Site),
}

/// `lab` is the folder where none is named; a relative one is below `here`.
pub fn parse(words: &[&str], lab: &Path, here: &Path) -> Result<Arguments, Failure> {
    let usage = |what: String| Failure::usage(what, USAGE);
    let mut lab = lab.to_path_buf();
    let mut plain = Vec::new();
    let mut flags = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--folder" => {
                let folder = words.next().ok_or_else(|| usage("--folder: which folder?".to_owned()))?;
                lab = here.join(folder);
            }
            flag @ ("--purge" | "--json" | "--ceph") => flags.push(flag),
            word if word.starts_with('-') => return Err(usage(format!("there is no option `{word}`"))),
            word => plain.push(word),
        }
    }
    let (name, rest) = plain.split_first().ok_or_else(|| usage("which command of the lab?".to_owned()))?;
    let allowed = match *name {
        "install" | "up" => "--ceph",
        "down" => "--purge",
        "status" => "--json",
        _ => "",
    };
    if let Some(flag) = flags.iter().find(|flag| **flag != allowed) {
        return Err(usage(format!("`lab {name}` has no option `{flag}`")));
    }
    let site = |word: &str| {
        Site::named(word, &lab)
            .ok_or_else(|| usage(format!("there is no site `{word}`: {} there are", NAMES.join(" and "))))
    };
    let service =
        |word: &&str| Service::named(word).ok_or_else(|| usage(format!("there is no service `{word}`")));
    let sites = || match rest {
        [] => Ok(Site::both(&lab)),
        rest => rest.iter().map(|word| site(word)).collect::<Result<Vec<_>, _>>(),
    };
    let one_site = || match rest {
        [word] => site(word),
        _ => Err(usage(format!("`lab {name}` is for one site, which must be named"))),
    };
    let site_and_services = || match rest {
        [] => Err(usage(format!("`lab {name}` is for one site, which must be named"))),
        [word] => Ok((site(word)?, OPENSTACK.to_vec())),
        [word, services @ ..] => Ok((site(word)?, services.iter().map(service).collect::<Result<_, _>>()?)),
    };
    let command = match *name {
        "install" if rest.is_empty() => Command::Install { ceph: !flags.is_empty() },
        "install" => return Err(usage("`lab install` is for all sites".to_owned())),
        "up" => Command::Up { sites: sites()?, ceph: !flags.is_empty() },
        "down" => Command::Down { sites: sites()?, purge: !flags.is_empty() },
        "stop" => site_and_services().map(|(site, services)| Command::Stop(site, services))?,
        "start" => site_and_services().map(|(site, services)| Command::Start(site, services))?,
        "destroy" => Command::Destroy(one_site()?),
        "status" => {
            let (site, services) = match rest {
                [] => (None, Vec::new()),
                [word, services @ ..] => {
                    (Some(site(word)?), services.iter().map(service).collect::<Result<_, _>>()?)
                }
            };
            Command::Status { site, services, json: !flags.is_empty() }
        }
        "smoke" => Command::Smoke(one_site()?),
        _ => return Err(usage(format!("the lab has no command `{name}`"))),
    };
    Ok(Arguments { lab, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, Failure> {
        let words: Vec<&str> = line.split_whitespace().collect();
        parse(&words, Path::new("/w/target/lab"), Path::new("/here"))
    }

    #[test]
    fn up_and_down_are_for_both_sites_unless_one_is_named() {
        let Command::Up { sites, ceph: false } = parsed("up").unwrap().command else { panic!() };
        assert_eq!(sites.iter().map(|site| site.name).collect::<Vec<_>>(), ["north", "south"]);
        assert!(matches!(parsed("up north --ceph").unwrap().command, Command::Up { ceph: true, .. }));
        let Command::Down { sites, purge } = parsed("down south --purge").unwrap().command else { panic!() };
        assert_eq!((sites.len(), sites[0].name, purge), (1, "south", true));
    }

    #[test]
    fn stop_means_openstack_unless_services_are_named() {
        let Command::Stop(site, services) = parsed("stop north").unwrap().command else { panic!() };
        assert_eq!((site.name, services), ("north", OPENSTACK.to_vec()));
        let Command::Start(_, services) = parsed("start north mariadb glance").unwrap().command else {
            panic!()
        };
        assert_eq!(services, [Service::Mariadb, Service::Glance]);
    }

    #[test]
    fn a_folder_is_taken_from_where_the_command_was_typed() {
        assert_eq!(parsed("up").unwrap().lab, Path::new("/w/target/lab"));
        assert_eq!(parsed("up --folder there").unwrap().lab, Path::new("/here/there"));
        assert_eq!(parsed("--folder /tmp/x up").unwrap().lab, Path::new("/tmp/x"));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, named) in [
            ("", "which command"),
            ("burn north", "burn"),
            ("up east", "east"),
            ("stop", "one site"),
            ("stop north nova", "nova"),
            ("destroy", "one site"),
            ("destroy north south", "one site"),
            ("up --purge", "--purge"),
            ("up --fast", "--fast"),
            ("up --folder", "--folder"),
        ] {
            let text = parsed(line).unwrap_err().to_string();
            assert!(text.contains(named) && text.contains("usage"), "{line}: {text}");
        }
    }
}
