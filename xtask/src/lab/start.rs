//! Starting services, and waiting until they answer.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::report::Report;
use super::services::{OPENSTACK, Service, Tools};
use super::site::Site;
use super::{answers, filer, ports, process, setup};
use crate::failure::Failure;

/// For everything that is started together.
pub const LIMIT: Duration = Duration::from_secs(60);
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
    /// Its logs, and how long they were before it was started.
    logs: Vec<(PathBuf, u64)>,
}

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
        let leftovers = process::kill_leftovers(self.site, &names)?;
        if leftovers > 0 {
            self.report
                .say(&format!("killed {leftovers} processes that a service had left behind when it died"));
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

    /// Waits until these answer, themselves and through HAProxy.
    pub fn wait_for(&mut self, services: &[Service], limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let mut why_not = Vec::new();
            let mut index = 0;
            while index < self.waited_for.len() {
                let launched = &self.waited_for[index];
                if !services.contains(&launched.service) {
                    index += 1;
                    continue;
                }
                match self.look(launched)? {
                    Ok(()) => {
                        let seconds = launched.since.elapsed().as_secs_f64();
                        self.report.say(&format!("{} answers ({seconds:.1} s)", launched.service.name()));
                        self.waited_for.remove(index);
                    }
                    Err(why) => {
                        why_not.push((index, why));
                        index += 1;
                    }
                }
            }
            if why_not.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.too_late(&why_not, limit));
            }
            sleep(POLL);
        }
    }

    pub fn wait_for_all(&mut self, limit: Duration) -> Result<(), Failure> {
        let all: Vec<Service> = self.waited_for.iter().map(|launched| launched.service).collect();
        self.wait_for(&all, limit)
    }

    /// The inner result: whether it answers. The outer one: whether there is any sense in waiting.
    fn look(&self, launched: &Launched) -> Result<Result<(), String>, Failure> {
        let service = launched.service;
        if process::main_of(self.site, service.name()).is_none() {
            return Err(Failure::new(
                format!(
                    "{}: {} ended {:.1} s after its start\n{}",
                    self.site.name,
                    service.name(),
                    launched.since.elapsed().as_secs_f64(),
                    launched.said()
                ),
                format!("the rest runs; its logs: {}; `lab up` starts it again", launched.log_names()),
            ));
        }
        let itself = answers::service(self.site, self.tools, service);
        Ok(itself.and_then(|()| answers::through_haproxy(self.site, service)))
    }

    fn too_late(&self, why_not: &[(usize, String)], limit: Duration) -> Failure {
        let mut text = format!("{}: after {} s these do not answer:", self.site.name, limit.as_secs());
        let mut logs = Vec::new();
        for (index, why) in why_not {
            let launched = &self.waited_for[*index];
            text.push_str(&format!("\n  {}: {why}\n{}", launched.service.name(), launched.said()));
            logs.push(launched.log_names());
        }
        let services: Vec<&str> =
            why_not.iter().map(|(index, _)| self.waited_for[*index].service.name()).collect();
        Failure::new(
            text.trim_end().to_owned(),
            format!(
                "they still run; logs: {}; `lab stop {site} {names}` and `lab start {site} {names}` begin them anew",
                logs.join(", "),
                site = self.site.name,
                names = services.join(" "),
            ),
        )
    }

    fn launched(&self, service: Service) -> Launched {
        let logs = service.logs().iter().map(|name| {
            let path = self.site.log().join(name);
            let length = fs::metadata(&path).map_or(0, |metadata| metadata.size());
            (path, length)
        });
        Launched { service, since: Instant::now(), logs: logs.collect() }
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
