//! `smoke`: a project's worth of things made through the APIs and looked at again.

use std::process::Stdio;
use std::time::Duration;

use super::services::Tools;
use super::site::Site;
use super::{process, setup};
use crate::failure::Failure;
use crate::step;

const SCRIPT: &str = include_str!("../../lab/smoke.py");
const LIMIT: Duration = Duration::from_mins(3);

/// Prints what was made as JSON on stdout; what it does meanwhile goes to stderr.
pub fn smoke(site: &Site, tools: &Tools) -> Result<(), Failure> {
    let script = setup::script(site, "smoke.py", SCRIPT)?;
    let mut command = process::client(site, "python", &tools.path);
    command
        .arg(script)
        .env("XDG_CACHE_HOME", tools.venv.join("cache"))
        .env("OS_CLIENT_CONFIG_FILE", site.lab().join("clouds.yaml"))
        .env("OS_CLOUD", site.name)
        .env("SITE_FOLDER", site.folder())
        .env("SHARE_FOLDER", site.share_mount())
        .env("CEPH_CONF", if site.has_ceph() { site.ceph_conf() } else { std::path::PathBuf::new() })
        .stdin(Stdio::null());
    let hint = format!("what was made so far is still there; logs: {}", site.log().display());
    let mut child = command.spawn().map_err(|error| {
        Failure::new(format!("{}: python could not be started: {error}", site.name), "`lab up` installs it")
    })?;
    match step::wait(&mut child, LIMIT) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(_)) => Err(Failure::new(format!("{}: not everything works: see above", site.name), hint)),
        Ok(None) => Err(Failure::new(format!("{}: not done after {} s", site.name, LIMIT.as_secs()), hint)),
        Err(error) => Err(Failure::new(format!("{}: {error}", site.name), hint)),
    }
}
