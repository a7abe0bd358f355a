//! `up`: a site from whatever state it is in to one where everything answers.

use std::path::Path;
use std::time::Duration;

use super::report::Report;
use super::services::{BELOW, OPENSTACK, Service, Tools};
use super::site::Site;
use super::start::{LIMIT, Starting};
use super::{ceph, configuration, ending, filer, lock, setup};
use crate::failure::Failure;

/// Another `up` may be on its way.
const PATIENCE: Duration = Duration::from_mins(10);
/// The first start does more beside the services, and two sites may begin at once.
const FIRST_LIMIT: Duration = Duration::from_mins(3);

/// Brings one site up; returns the seconds that it took. `clouds` is the file for OpenStack's clients.
pub fn up(site: &Site, tools: &Tools, clouds: &Path, with_ceph: bool) -> Result<f64, Failure> {
    let report = Report::new(site.name);
    let _lock = lock::take(site.lab(), site.name, PATIENCE)?;
    setup::make_folders(site)?;
    if with_ceph {
        ceph::add(site)?;
    }
    let interrupted = ending::kill_leftovers(site, &[setup::MARK])?;
    if interrupted > 0 {
        report.say(&format!("killed what an interrupted `up` had left running (processes: {interrupted})"));
    }
    for name in configuration::write(site, &tools.venv)? {
        report.say(&format!("etc/{name} was changed since it was written: left as it is"));
    }
    setup::mariadb_data(site, tools)?;

    let mut starting = Starting::new(site, tools, &report);
    starting.launch(&BELOW)?;
    filer::mount(site, tools)?;
    if site.has_ceph() {
        ceph::up(site, tools, &mut starting, FIRST_LIMIT, &report)?;
    }
    // RabbitMQ takes longest; Cinder tries again every second until it answers.
    starting.wait_for(&[Service::Haproxy, Service::Memcached, Service::Mariadb], FIRST_LIMIT)?;
    if !setup::has_schemas(site) {
        setup::schemas(site, tools)?;
        report.say("schemas, keys and the first admin are there");
    }
    starting.launch(&OPENSTACK)?;
    if setup::is_seeded(site) {
        starting.wait_for_all(LIMIT)?;
    } else {
        starting.wait_for(&[Service::Keystone], FIRST_LIMIT)?;
        std::thread::scope(|scope| {
            let seed = scope.spawn(|| setup::seed(site, tools, clouds));
            starting.wait_for_all(FIRST_LIMIT)?;
            setup::joined(seed.join())
        })?;
        report.say("service users, catalog and volume type are there");
    }
    Ok(report.seconds())
}
