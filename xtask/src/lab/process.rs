//! The processes of a site: started in sessions of their own, recorded as "pid starttime", and found again by marks in
//! their environment, so that nothing of a site is ever left behind, whatever was killed before.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::site::Site;
use crate::failure::Failure;

/// The mark of a site's processes: the site's folder.
const SITE_MARK: &str = "FARSITE_LAB_SITE";
/// The mark of a service's processes: its name.
const SERVICE_MARK: &str = "FARSITE_LAB_SERVICE";
/// `sysconf(_SC_CLK_TCK)`, which is 100 for user space on every Linux that has /proc (proc_pid_stat(5)).
const TICKS_PER_SECOND: u64 = 100;
/// More than any of ours has.
const ENVIRONMENT_BYTES: usize = 256 << 10;

/// One process for certain: its number alone is given away again when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks from the machine's start to this process's.
    pub started: u64,
}

impl Process {
    /// The process that has this number now; `None` when there is none, or one that has ended and waits for its parent.
    pub fn now(pid: u32) -> Option<Self> {
        let started = start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self { pid, started })
    }

    pub fn is_alive(self) -> bool {
        Self::now(self.pid) == Some(self)
    }

    pub fn age(self) -> Duration {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds: f64 = uptime.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(0.0);
        let started = Duration::from_millis(self.started * 1000 / TICKS_PER_SECOND);
        Duration::from_secs_f64(seconds).saturating_sub(started)
    }

    /// Its share of memory in KiB, pages that it shares with others divided among them.
    fn pss_kib(self) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }
}

/// The start time out of a line of /proc/PID/stat, unless the process has ended. The name in parentheses may hold
/// anything, parentheses too.
fn start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    // Field 22 of the line; the state is field 3.
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

pub fn pid_file(site: &Site, service: &str) -> std::path::PathBuf {
    site.run().join(format!("{service}.pid"))
}

fn parse_pid_file(text: &str) -> Option<Process> {
    let (pid, started) = text.trim().split_once(' ')?;
    Some(Process { pid: pid.parse().ok()?, started: started.parse().ok()? })
}

/// The service's first process, if it is alive.
pub fn main_of(site: &Site, service: &str) -> Option<Process> {
    let recorded = fs::read_to_string(pid_file(site, service)).ok();
    let recorded = recorded.as_deref().and_then(parse_pid_file).filter(|process| process.is_alive());
    // After a restart of the machine another process can have the same number and start time. One that is just becoming
    // another program has no environment for a moment.
    let ours = |process: &Process| {
        let environment = environment_of(process.pid).unwrap_or_default();
        environment.is_empty() || mark_in(site, process.pid, &environment).is_some_and(|mark| mark == service)
    };
    recorded.filter(ours).or_else(|| {
        // A database server that somebody else started on the site's data, as a promotion does.
        (service == "mariadb").then(|| of_service(site, service).into_iter().next())?
    })
}

/// Every process of the site, with the service that it belongs to.
pub fn of_site(site: &Site) -> Vec<(Process, String)> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<u32>().ok()
    });
    numbers.filter_map(|pid| Some((Process::now(pid)?, mark_of(site, pid)?))).collect()
}

pub fn of_service(site: &Site, service: &str) -> Vec<Process> {
    of_site(site).into_iter().filter(|(_, name)| name == service).map(|(process, _)| process).collect()
}

pub fn pss_kib(site: &Site, service: &str) -> u64 {
    of_service(site, service).into_iter().map(Process::pss_kib).sum()
}

/// In one read: of a process that becomes another program between two, the rest could not be read any more.
fn environment_of(pid: u32) -> Option<Vec<u8>> {
    let mut environment = vec![0; ENVIRONMENT_BYTES];
    let read = fs::File::open(format!("/proc/{pid}/environ")).ok()?.read(&mut environment).ok()?;
    environment.truncate(read);
    Some(environment)
}

/// The service that a process belongs to, if it is one of this site.
fn mark_of(site: &Site, pid: u32) -> Option<String> {
    mark_in(site, pid, &environment_of(pid)?)
}

/// The same by an environment that was read once: another look may find another program's, or none.
fn mark_in(site: &Site, pid: u32, environment: &[u8]) -> Option<String> {
    let folder = site.folder();
    let environment = String::from_utf8_lossy(environment);
    let value =
        |name: &str| environment.split('\0').find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
    if let Some(marked) = value(SITE_MARK) {
        return (Path::new(marked) == folder).then(|| value(SERVICE_MARK).unwrap_or("setup").to_owned());
    }
    // A database server works in its data folder, whoever started it.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (name.trim() == "mariadbd" && works_in.starts_with(folder)).then(|| "mariadb".to_owned())
}

/// A command of the site: nothing of the caller's environment, everything that it starts marked.
pub fn command(site: &Site, service: &str, program: &str, path: &str) -> Command {
    let mut command = client(site, program, path);
    command.env(SITE_MARK, site.folder()).env(SERVICE_MARK, service);
    command
}

/// A command that asks the site without being part of it.
pub fn client(site: &Site, program: &str, path: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", path)
        .env("HOME", site.below("home"))
        .env("LANG", "C.UTF-8")
        .env("PYTHONWARNINGS", "ignore")
        // setproctitle would write over the environment, and so over the marks.
        .env("SPT_NOENV", "1")
        .current_dir(site.folder())
        .stdin(Stdio::null());
    command
}

/// Starts a service's first process in a session of its own, so that no terminal takes it along, its output going to
/// `log/SERVICE.out`.
pub fn spawn(site: &Site, service: &str, command: &Command) -> Result<Process, Failure> {
    let cannot = |error: io::Error| {
        Failure::new(
            format!("{}: {service} could not be started: {error}", site.name),
            "nothing of it runs; `lab up` tries again",
        )
    };
    let log = fs::File::options().create(true).append(true).open(out_file(site, service)).map_err(cannot)?;
    // setsid(1) becomes the program itself: the number and the start time stay.
    let mut session = Command::new("setsid");
    session.arg("--").arg(command.get_program()).args(command.get_args()).env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            session.env(name, value);
        }
    }
    session.current_dir(site.folder()).stdin(Stdio::null());
    session.stdout(log.try_clone().map_err(cannot)?).stderr(log);
    let child = session.spawn().map_err(cannot)?;
    let Some(process) = Process::now(child.id()) else {
        return Err(cannot(io::Error::other("it ended at once")));
    };
    let file = pid_file(site, service);
    let new = file.with_extension("pid.new");
    fs::write(&new, format!("{} {}\n", process.pid, process.started)).map_err(cannot)?;
    fs::rename(new, file).map_err(cannot)?;
    Ok(process)
}

pub fn out_file(site: &Site, service: &str) -> std::path::PathBuf {
    site.log().join(format!("{service}.out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_names_a_process_by_number_and_start_time() {
        assert_eq!(parse_pid_file("123 4567\n"), Some(Process { pid: 123, started: 4567 }));
        for broken in ["", "123", "123 ", "x 1", "123 4567 8"] {
            assert_eq!(parse_pid_file(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn the_start_time_is_read_behind_any_name_and_not_of_a_process_that_has_ended() {
        let behind = "1 2 2 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 777 1000 5";
        assert_eq!(start_time(&format!("9 (a (b) c) S {behind}")), Some(777));
        assert_eq!(start_time(&format!("9 (sh) Z {behind}")), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn another_process_with_the_same_number_is_not_the_recorded_one() {
        let me = Process::now(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
    }
}
