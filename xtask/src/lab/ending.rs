//! The end of a site's processes: in order where there is time for it, and for certain.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::process::{Process, main_of, of_service, of_site, pid_file};
use super::site::Site;
use crate::failure::Failure;

/// What a service gets to end in order before it is killed.
const GRACE: Duration = Duration::from_secs(20);
/// How long a killed process may take to be gone: it may be inside a write to a disk.
const AFTER_KILL: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

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
    use super::super::process::{command, out_file, spawn};
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
