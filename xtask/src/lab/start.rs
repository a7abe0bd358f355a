//! Starting services, and waiting until they answer.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::report::Report;
use super::services::{OPENSTACK, Service, Tools};
use super::site::Site;
use super::{answers, ending, filer, ports, process, setup};
use crate::failure::Failure;

/// For everything that is started together.
pub const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(200);
/// How much of a log an error shows.
const LOG_LINES: usize = 15;

/// Services of one site on their way up.
#[derive(Debug)]
pub struct Starting<'a> {
    site: &'a Site,
    tools: &'a Tools,
    report: &'a Report,
    waited_for: Vec<Launched>,
}

#[derive(Debug)]
struct Launched {
    service: Service,
    since: Instant,
    /// How often it had reported at the first look, where it reports to the database.
    reports: Option<u64>,
    /// Its logs, and how long they were before it was started.
    logs: Vec<(PathBuf, u64)>,
}

/// The inner result: whether it answers, or why not. The outer one: whether there is any sense in waiting for it.
type Look = Result<Result<(), String>, Failure>;

impl<'a> Starting<'a> {
    pub fn new(site: &'a Site, tools: &'a Tools, report: &'a Report) -> Self {
        Self { site, tools, report, waited_for: Vec::new() }
    }

    /// Starts those that do not run, after what an earlier process of theirs left behind is gone. Those that run are
    /// waited for as well.
    pub fn launch(&mut self, services: &[Service]) -> Result<(), Failure> {
        let running = |service: &Service| process::main_of(self.site, service.name()).is_some();
        let (running, missing): (Vec<Service>, Vec<Service>) =
            services.iter().partition(|service| running(service));
        let names: Vec<&str> = missing.iter().map(|service| service.name()).collect();
        let leftovers = ending::kill_leftovers(self.site, &names)?;
        if leftovers > 0 {
            self.report.say(&format!(
                "killed what services had left behind when they died (processes: {leftovers})"
            ));
        }
        for service in &missing {
            ports::check_free(self.site, *service)?;
        }
        for service in running {
            self.waited_for.push(self.launched(service));
        }
        for service in missing {
            let launched = self.launched(service);
            if service == Service::CinderVolume {
                filer::mount(self.site, self.tools)?;
            }
            process::spawn(self.site, service.name(), &service.command(self.site, self.tools))?;
            self.waited_for.push(launched);
            if service == Service::Epmd {
                // RabbitMQ would start a mapper of its own if this one did not answer yet.
                self.wait_for(&[Service::Epmd], LIMIT)?;
            }
        }
        Ok(())
    }

    /// Waits until these answer, themselves and through HAProxy; others that do meanwhile are told of as well.
    pub fn wait_for(&mut self, services: &[Service], limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let mut silent = Vec::new();
            for (launched, found) in self.look_at_all() {
                match found? {
                    Ok(()) => {
                        let seconds = launched.since.elapsed().as_secs_f64();
                        self.report.say(&format!("{} answers ({seconds:.1} s)", launched.service.name()));
                    }
                    Err(why) => silent.push((launched, why)),
                }
            }
            let needed = |(launched, _): &&(Launched, String)| services.contains(&launched.service);
            let done = !silent.iter().any(|silent| needed(&silent));
            if !done && Instant::now() >= deadline {
                return Err(self.too_late(silent.iter().filter(needed), limit));
            }
            self.waited_for = silent.into_iter().map(|(launched, _)| launched).collect();
            if done {
                return Ok(());
            }
            sleep(POLL);
        }
    }

    pub fn wait_for_all(&mut self, limit: Duration) -> Result<(), Failure> {
        let all: Vec<Service> = self.waited_for.iter().map(|launched| launched.service).collect();
        self.wait_for(&all, limit)
    }

    /// Looks at all at the same time: a service that is still loading keeps whoever asks it waiting.
    fn look_at_all(&mut self) -> Vec<(Launched, Look)> {
        let all = std::mem::take(&mut self.waited_for);
        let this = &*self;
        std::thread::scope(|scope| {
            let looks = all.into_iter().map(|mut launched| {
                scope.spawn(move || {
                    let found = this.look(&mut launched);
                    (launched, found)
                })
            });
            // Collected first, so that all of them have begun before one is waited for.
            let looks: Vec<_> = looks.collect();
            looks.into_iter().filter_map(|look| look.join().ok()).collect()
        })
    }

    fn look(&self, launched: &mut Launched) -> Look {
        let service = launched.service;
        if process::main_of(self.site, service.name()).is_none() {
            return Err(Failure::new(
                format!(
                    "{}: {} ended {:.1} s after its start\n{}",
                    self.site.name,
                    service.name(),
                    launched.since.elapsed().as_secs_f64(),
                    launched.said().trim_end()
                ),
                format!("the rest runs; its logs: {}; `lab up` starts it again", launched.log_names()),
            ));
        }
        Ok(match service {
            Service::CinderScheduler | Service::CinderVolume => self.has_reported(launched),
            _ => answers::service(self.site, self.tools, service)
                .and_then(|()| answers::through_haproxy(self.site, service)),
        })
    }

    /// Whether it has reported since the first look.
    fn has_reported(&self, launched: &mut Launched) -> Result<(), String> {
        // Without a row yet, its first report is one more than none.
        let reports = answers::reports(self.site, self.tools, launched.service)?;
        let count = reports.map_or(0, |reports| reports.count);
        let before = *launched.reports.get_or_insert(count);
        if count > before {
            Ok(())
        } else {
            Err("it has not reported to the database since its start".to_owned())
        }
    }

    fn too_late<'b>(&self, silent: impl Iterator<Item = &'b (Launched, String)>, limit: Duration) -> Failure {
        let mut text = format!("{}: after {} s these do not answer:", self.site.name, limit.as_secs());
        let (mut logs, mut names) = (Vec::new(), Vec::new());
        for (launched, why) in silent {
            let _ = write!(text, "\n  {}: {why}\n{}", launched.service.name(), launched.said());
            logs.push(launched.log_names());
            names.push(launched.service.name());
        }
        Failure::new(
            text.trim_end().to_owned(),
            format!(
                "they still run; logs: {}; `lab stop {site} {names}` and `lab start {site} {names}` begin them anew",
                logs.join(", "),
                site = self.site.name,
                names = names.join(" "),
            ),
        )
    }

    fn launched(&self, service: Service) -> Launched {
        let logs = service.logs().iter().map(|name| {
            let path = self.site.log().join(name);
            let length = fs::metadata(&path).map_or(0, |metadata| metadata.size());
            (path, length)
        });
        Launched { service, since: Instant::now(), reports: None, logs: logs.collect() }
    }
}

impl Launched {
    /// What its logs have got since the start: lines that tell of an error, or else the last ones.
    fn said(&self) -> String {
        self.logs
            .iter()
            .map(|(path, from)| telling(&since(path, *from)))
            .find(|text| !text.is_empty())
            .unwrap_or_default()
    }

    fn log_names(&self) -> String {
        let names: Vec<String> = self.logs.iter().map(|(path, _)| path.display().to_string()).collect();
        names.join(" and ")
    }
}

/// Starts services of a site that runs otherwise, and waits until all of them answer.
pub fn start(site: &Site, tools: &Tools, services: &[Service], report: &Report) -> Result<(), Failure> {
    if services.iter().any(|service| OPENSTACK.contains(service)) {
        for needed in [Service::Mariadb, Service::Rabbitmq] {
            if !services.contains(&needed) && !services.contains(&Service::Haproxy) {
                answers::through_haproxy(site, needed).map_err(|why| {
                    Failure::new(
                        format!(
                            "{}: {} does not answer, and nothing was started: {why}",
                            site.name,
                            needed.name()
                        ),
                        format!("`lab status {0}` shows what runs; `lab up {0}` starts all of it", site.name),
                    )
                })?;
            }
        }
    }
    let mut starting = Starting::new(site, tools, report);
    setup::make_folders(site)?;
    starting.launch(services)?;
    starting.wait_for_all(LIMIT)
}

fn since(path: &PathBuf, from: u64) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(bytes.get(from as usize..).unwrap_or_default()).into_owned()
}

fn telling(text: &str) -> String {
    let bad = |line: &&str| {
        [" ERROR ", " CRITICAL ", "[error]", "[ALERT]", "Error:"].iter().any(|mark| line.contains(mark))
    };
    let errors: Vec<&str> = text.lines().filter(bad).collect();
    if errors.is_empty() {
        setup::last_lines(text, LOG_LINES)
    } else {
        setup::last_lines(&errors.join("\n"), LOG_LINES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_the_lines_with_errors_are_shown_or_else_its_end() {
        let log = "1 INFO a\n2 ERROR keystone broken\n3 INFO b\n";
        assert_eq!(telling(log), "    2 ERROR keystone broken\n");
        assert_eq!(telling("one\ntwo\n"), "    one\n    two\n");
        assert_eq!(telling(""), "");
    }
}
