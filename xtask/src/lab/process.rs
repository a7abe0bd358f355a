//! The processes of a site: started in sessions of their own, recorded as "pid starttime", and found again by marks in
//! their environment, so that nothing of a site is ever left behind, whatever was killed before.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::site::Site;
use crate::failure::Failure;

/// The mark of a site's processes: the site's folder.
const SITE_MARK: &str = "FARSITE_LAB_SITE";
/// The mark of a service's processes: its name.
const SERVICE_MARK: &str = "FARSITE_LAB_SERVICE";
/// What a service gets to end in order before it is killed.
pub const GRACE: Duration = Duration::from_secs(20);
/// How long a killed process may take to be gone: it may be inside a write to a disk.
const AFTER_KILL: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// `sysconf(_SC_CLK_TCK)`, which is 100 for user space on every Linux that has /proc (proc_pid_stat(5)).
const TICKS_PER_SECOND: u64 = 100;

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

fn pid_file(site: &Site, service: &str) -> std::path::PathBuf {
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
        let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        environment.is_empty() || mark_of(site, process.pid).is_some_and(|mark| mark == service)
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

/// The service that a process belongs to, if it is one of this site.
fn mark_of(site: &Site, pid: u32) -> Option<String> {
    let folder = site.folder();
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let environment = String::from_utf8_lossy(&environment);
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

/// What became of a service that was stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stopped {
    WasNotRunning,
    InOrder(Duration),
    Killed(Duration),
}

/// Stops services, all at once: SIGTERM to the first process of each, SIGKILL after `GRACE` to all that is left of it.
/// The result has one entry for each of `services`, in their order.
pub fn stop(site: &Site, services: &[&str]) -> Result<Vec<Stopped>, Failure> {
    let begun = Instant::now();
    let mut first: Vec<Process> = Vec::new();
    let mut outcomes: Vec<Option<Stopped>> = Vec::new();
    for service in services {
        let all = of_service(site, service);
        let main = main_of(site, service);
        outcomes.push(all.is_empty().then_some(Stopped::WasNotRunning));
        // Without its first process, what is left has nobody that could pass the signal on.
        first.extend(main.map_or(all, |main| vec![main]));
    }
    signal("TERM", &first);
    while outcomes.iter().any(Option::is_none) && begun.elapsed() < GRACE {
        sleep(POLL);
        note_the_gone(site, services, &mut outcomes, || Stopped::InOrder(begun.elapsed()));
    }
    let killed = Instant::now();
    while outcomes.iter().any(Option::is_none) {
        let left = left_of(site, services);
        if killed.elapsed() > AFTER_KILL {
            return Err(still_there(site, &left));
        }
        signal("KILL", &left);
        sleep(POLL);
        note_the_gone(site, services, &mut outcomes, || Stopped::Killed(begun.elapsed()));
    }
    for service in services {
        let _ = fs::remove_file(pid_file(site, service));
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// Kills everything of the site at once, in whatever order, until nothing is left. Returns how many processes it was.
pub fn kill_all(site: &Site) -> Result<usize, Failure> {
    kill_until_gone(site, || of_site(site).into_iter().map(|(process, _)| process).collect())
}

/// Kills what a service left behind when its first process died, and what an interrupted `up` left running. Returns
/// how many processes it was.
pub fn kill_leftovers(site: &Site, services: &[&str]) -> Result<usize, Failure> {
    kill_until_gone(site, || left_of(site, services))
}

/// A process can have started another one between the look and the signal, and one that is just becoming another program
/// cannot be recognised: hence it is over only when nothing is found twice.
fn kill_until_gone(site: &Site, find: impl Fn() -> Vec<Process>) -> Result<usize, Failure> {
    let begun = Instant::now();
    let mut killed: Vec<Process> = Vec::new();
    loop {
        let left = find();
        if left.is_empty() {
            if killed.is_empty() || find().is_empty() {
                return Ok(killed.len());
            }
            continue;
        }
        if begun.elapsed() > AFTER_KILL {
            return Err(still_there(site, &left));
        }
        signal("KILL", &left);
        killed.extend(left.into_iter().filter(|process| !killed.contains(process)).collect::<Vec<_>>());
        sleep(Duration::from_millis(10));
    }
}

fn left_of(site: &Site, services: &[&str]) -> Vec<Process> {
    let all = of_site(site).into_iter();
    all.filter(|(_, name)| services.contains(&name.as_str())).map(|(process, _)| process).collect()
}

fn note_the_gone(
    site: &Site,
    services: &[&str],
    outcomes: &mut [Option<Stopped>],
    how: impl Fn() -> Stopped,
) {
    let there = of_site(site);
    for (service, outcome) in services.iter().zip(outcomes) {
        if outcome.is_none() && !there.iter().any(|(_, name)| name == service) {
            *outcome = Some(how());
        }
    }
}

fn still_there(site: &Site, left: &[Process]) -> Failure {
    let numbers: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
    Failure::new(
        format!("{}: these processes are still there after SIGKILL: {}", site.name, numbers.join(", ")),
        "a process that hangs in the kernel goes when what it waits for does: see `cat /proc/PID/stack` and `dmesg`",
    )
}

fn signal(name: &str, processes: &[Process]) {
    let alive: Vec<String> = processes
        .iter()
        .filter(|process| process.is_alive())
        .map(|process| process.pid.to_string())
        .collect();
    if !alive.is_empty() {
        // The standard library sends SIGKILL alone, and only to its own children. One that is gone by now is no error.
        let _ = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$@\"", name])
            .args(alive)
            .stderr(Stdio::null())
            .status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A site in a folder of the test's own, removed at the end.
    struct TestSite(Site);

    impl TestSite {
        fn new(name: &str) -> Self {
            let lab = std::env::temp_dir().join(format!("farsite-xtask-{name}-{}", std::process::id()));
            let site = Site::named("north", &lab).unwrap();
            fs::create_dir_all(site.run()).unwrap();
            fs::create_dir_all(site.log()).unwrap();
            Self(site)
        }

        fn run(&self, service: &str, script: &str) -> Process {
            let mut sh = command(&self.0, service, "sh", "/usr/bin:/bin");
            sh.args(["-c", script]);
            let process = spawn(&self.0, service, &sh).unwrap();
            // Until it says that its traps are set.
            while !fs::read_to_string(out_file(&self.0, service)).unwrap().contains("ready") {
                sleep(POLL);
            }
            process
        }
    }

    impl Drop for TestSite {
        fn drop(&mut self) {
            let _ = kill_all(&self.0);
            let _ = fs::remove_dir_all(self.0.lab());
        }
    }

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

    #[test]
    fn a_service_stops_with_all_that_it_started() {
        let site = TestSite::new("stop");
        let main =
            site.run("glance", "trap 'exit 0' TERM; sleep 600 & echo ready; while :; do sleep 0.05; done");
        assert_eq!(main_of(&site.0, "glance"), Some(main));
        // Its child does not get the signal and stays: for that there is SIGKILL, which this test does not wait for.
        let found = of_service(&site.0, "glance");
        assert!(found.len() >= 2 && found.contains(&main), "{found:?}");

        signal("TERM", &[main]);
        while main.is_alive() {
            sleep(POLL);
        }
        assert_eq!(main_of(&site.0, "glance"), None);
        assert!(kill_leftovers(&site.0, &["glance"]).unwrap() >= 1);
        assert!(of_site(&site.0).is_empty());
    }

    #[test]
    fn several_services_stop_at_once_and_one_that_did_not_run_is_said_to_have_not() {
        let site = TestSite::new("several");
        for service in ["keystone", "cinder-api"] {
            site.run(service, "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done");
        }
        let outcomes = stop(&site.0, &["keystone", "glance", "cinder-api"]).unwrap();
        assert!(
            matches!(outcomes.as_slice(), [Stopped::InOrder(_), Stopped::WasNotRunning, Stopped::InOrder(_)]),
            "{outcomes:?}"
        );
        assert!(!pid_file(&site.0, "keystone").exists());
    }

    #[test]
    fn a_process_of_another_site_is_left_alone() {
        let here = TestSite::new("here");
        let there = TestSite::new("there");
        let other = there.run("glance", "echo ready; exec sleep 600");
        here.run("glance", "echo ready; exec sleep 600");
        assert_eq!(kill_all(&here.0).unwrap(), 1);
        assert!(other.is_alive());
    }
}
