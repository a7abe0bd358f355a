//! `cargo xtask lab`: two sites of real OpenStack on this machine, to be failed over between. Words come in; services
//! run, each site below one folder and at one address of its own. Whatever was killed or cut off before, `up` leads to a
//! site that answers, and `down` and `destroy` leave nothing of it running or mounted.

mod answers;
mod arguments;
mod ceph;
mod configuration;
mod drill;
mod ending;
mod filer;
mod install;
mod lock;
mod ports;
mod process;
mod report;
mod services;
mod setup;
pub mod site;
mod smoke;
mod start;
mod status;
mod stop;
mod up;

use std::path::Path;
use std::time::Duration;

use crate::failure::Failure;
use crate::programs;
use arguments::Command;
use report::Report;
use services::Tools;
use site::Site;

pub const USAGE: &str = "\
usage: cargo xtask lab COMMAND [--folder FOLDER]

  install [--ceph]            what sites run, and nothing is started; `up` does it too
  up [SITE…] [--ceph]         starts what does not run, on first use from nothing; both sites when none is named;
                              --ceph: each site gets a Ceph cluster, for good
  down [SITE…] [--purge]      stops everything and unmounts; --purge deletes the site's folder too
  stop SITE [SERVICE…]        stops OpenStack's services, or those named; ends when they are gone
  start SITE [SERVICE…]       starts OpenStack's services, or those named; ends when they answer
  destroy SITE                the disaster: everything is killed at once, and the site's data is moved out of reach
  status [SITE [SERVICE…]] [--json]
                              what runs, answers, since when, memory; with a site an error unless all of it answers
  smoke SITE                  makes a project, credentials, an image, volumes and a snapshot, and looks at them; JSON
  drill COMMAND …             south's services on data that a drill restored, in a network of their own

SITE is north or south. FOLDER is target/lab where none is named.
";

/// For `stop`, `start` and `destroy`, which are steps of runbooks: with the 60 s for the work itself this stays below the
/// 90 s of such a step.
const SHORT_PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_mins(10);

pub fn lab(root: &Path, words: &[&str]) -> Result<(), Failure> {
    if matches!(words, ["help" | "-h" | "--help"]) {
        print!("{USAGE}");
        return Ok(());
    }
    if let ["drill", rest @ ..] = words {
        return drill::drill(root, rest);
    }
    let here = std::env::current_dir().unwrap_or_else(|_| root.to_path_buf());
    let arguments = arguments::parse(words, &root.join("target/lab"), &here)?;
    let lab = arguments.lab;
    site::check_folder(&lab)?;
    if !programs::succeeds("sh", &["-c", "test \"$(id -u)\" = 0"]) {
        return Err(Failure::new(
            "the lab mounts file systems and looks into its processes, which only root may; nothing was done",
            "as root: `cargo build -p xtask`, then `sudo target/debug/xtask lab …`",
        ));
    }
    match arguments.command {
        Command::Install { ceph } => install::ensure(root, ceph).map(|_| ()),
        Command::Up { sites, ceph } => up_all(root, &lab, &sites, ceph),
        Command::Down { sites, purge } => {
            let results = at_the_same_time(&sites, |site| {
                let _lock = lock::take(&lab, site.name, PATIENCE)?;
                let report = Report::new(site.name);
                stop::down(site, purge, &report)?;
                report.say("down");
                Ok(())
            });
            all_or_first_failure(results)
        }
        Command::Stop(site, services) => {
            let _lock = lock::take(&lab, site.name, SHORT_PATIENCE)?;
            stop::stop(&site, &services, &Report::new(site.name))
        }
        Command::Start(site, services) => {
            let _lock = lock::take(&lab, site.name, SHORT_PATIENCE)?;
            must_exist(&site)?;
            start::start(&site, &install::tools(root), &services, &Report::new(site.name))
        }
        Command::Destroy(site) => {
            let _lock = lock::take(&lab, site.name, SHORT_PATIENCE)?;
            let report = Report::new(site.name);
            match stop::destroy(&site, &report)? {
                Some(aside) => {
                    report.say(&format!("destroyed; what was its data is now {}", aside.display()));
                }
                None => report.say("there was no data"),
            }
            Ok(())
        }
        Command::Status { site, services, json } => {
            let required = site.is_some();
            let sites = site.map_or_else(|| Site::both(&lab), |site| vec![site]);
            show_status(&sites, &install::tools(root), &services, json, required)
        }
        Command::Smoke(site) => {
            must_exist(&site)?;
            smoke::smoke(&site, &install::tools(root))
        }
    }
}

/// The Python environment of the lab.
pub fn environment(root: &Path) -> std::path::PathBuf {
    install::tools(root).venv
}

fn up_all(root: &Path, lab: &Path, sites: &[Site], ceph: bool) -> Result<(), Failure> {
    let with_ceph = ceph || sites.iter().any(Site::has_ceph);
    let tools: Tools = install::ensure(root, with_ceph)?;
    setup::make_folder(lab)?;
    let clouds = configuration::write_clouds(lab, &tools.venv)?;
    let results = at_the_same_time(sites, |site| {
        let seconds = up::up(site, &tools, &clouds, ceph)?;
        println!("{}", addresses(site, seconds));
        Ok(())
    });
    all_or_first_failure(results)?;
    let name = sites.first().map_or("north", |site| site.name);
    println!(
        "client: OS_CLIENT_CONFIG_FILE={} {}/bin/openstack --os-cloud {name} volume list",
        clouds.display(),
        tools.venv.display()
    );
    Ok(())
}

fn at_the_same_time(
    sites: &[Site],
    work: impl Fn(&Site) -> Result<(), Failure> + Sync,
) -> Vec<Result<(), Failure>> {
    std::thread::scope(|scope| {
        // Collected first, so that all have begun before one is waited for.
        let threads: Vec<_> = sites.iter().map(|site| scope.spawn(|| work(site))).collect();
        threads.into_iter().map(|thread| setup::joined(thread.join())).collect()
    })
}

/// The first failure is returned, and so printed by the caller; those behind it are printed here.
fn all_or_first_failure(results: Vec<Result<(), Failure>>) -> Result<(), Failure> {
    let mut failures = results.into_iter().filter_map(Result::err);
    let first = failures.next();
    for other in failures {
        eprint!("{other}");
    }
    first.map_or(Ok(()), Err)
}

fn addresses(site: &Site, seconds: f64) -> String {
    format!(
        "{}: up in {seconds:.1} s\n  Keystone {}  Glance {}  Cinder {}\n  MariaDB {address}:{}  RabbitMQ {address}:{}  data {}",
        site.name,
        site.url(site::KEYSTONE, "/v3"),
        site.url(site::GLANCE, ""),
        site.url(site::CINDER, "/v3"),
        site::MARIADB.front,
        site::RABBITMQ.front,
        site.folder().display(),
        address = site.address(),
    )
}

fn show_status(
    sites: &[Site],
    tools: &Tools,
    services: &[services::Service],
    json: bool,
    required: bool,
) -> Result<(), Failure> {
    let look = |site: &Site| {
        let services = if services.is_empty() { services::of(site) } else { services.to_vec() };
        (site.clone(), status::look(site, tools, &services))
    };
    let states: Vec<_> = sites.iter().map(look).collect();
    if json {
        print!("{}", status::json(&states));
    } else {
        for (site, states) in &states {
            print!("{}", status::table(site, states));
        }
    }
    let silent = states.iter().flat_map(|(_, states)| states).filter(|state| !state.answers()).count();
    let looked_at: usize = states.iter().map(|(_, states)| states.len()).sum();
    if required && silent > 0 {
        let name = sites.first().map_or("", |site| site.name);
        return Err(Failure::new(
            format!("{name}: {silent} of {looked_at} services do not answer"),
            format!("`lab up {name}` starts what does not run"),
        ));
    }
    Ok(())
}

fn must_exist(site: &Site) -> Result<(), Failure> {
    if site.etc().join("haproxy.cfg").exists() {
        return Ok(());
    }
    Err(Failure::new(
        format!("there is no site in {}", site.folder().display()),
        format!("`lab up {}` makes one", site.name),
    ))
}
