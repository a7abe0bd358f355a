//! `status`: what runs, whether it answers, since when, and in how much memory.

use std::fmt::Write;

use super::services::{Service, Tools};
use super::site::Site;
use super::{answers, process};

#[derive(Debug)]
pub struct State {
    service: Service,
    pid: Option<u32>,
    seconds: u64,
    pss_mib: u64,
    /// Why it does not answer, if it does not.
    why_not: Option<String>,
}

impl State {
    pub fn answers(&self) -> bool {
        self.why_not.is_none()
    }
}

pub fn look(site: &Site, tools: &Tools, services: &[Service]) -> Vec<State> {
    let look = |service: &Service| {
        let main = process::main_of(site, service.name());
        let why_not = match main {
            // Somebody else may have started it, and it serves all the same.
            None if answers::service(site, tools, *service).is_err() => Some("it does not run".to_owned()),
            _ => answers::service(site, tools, *service).err(),
        };
        State {
            service: *service,
            pid: main.map(|process| process.pid),
            seconds: main.map_or(0, |process| process.age().as_secs()),
            pss_mib: process::pss_kib(site, service.name()) / 1024,
            why_not,
        }
    };
    services.iter().map(look).collect()
}

pub fn table(site: &Site, states: &[State]) -> String {
    let mut text = format!("{} at {}\n", site.name, site.address());
    let _ = writeln!(text, "  {:<17} {:>8} {:>9} {:>8}  answers", "service", "pid", "since", "memory");
    for state in states {
        let (pid, since, memory) = match state.pid {
            Some(pid) => (pid.to_string(), format!("{} s", state.seconds), format!("{} MiB", state.pss_mib)),
            None => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        let answer = state.why_not.as_ref().map_or("yes".to_owned(), |why| format!("no: {why}"));
        let _ = writeln!(text, "  {:<17} {pid:>8} {since:>9} {memory:>8}  {answer}", state.service.name());
    }
    let total: u64 = states.iter().map(|state| state.pss_mib).sum();
    let _ = writeln!(text, "  {:<17} {:>8} {:>9} {:>8}", "together", "", "", format!("{total} MiB"));
    text
}

/// `{"north": {"address": …, "services": {"haproxy": {"pid": …, …}, …}}, …}`
pub fn json(sites: &[(Site, Vec<State>)]) -> String {
    let sites = sites.iter().map(|(site, states)| {
        let services: Vec<String> = states.iter().map(State::json).collect();
        format!(
            "  {}: {{\"address\": {}, \"services\": {{\n{}\n  }}}}",
            quoted(site.name),
            quoted(&site.address()),
            services.join(",\n")
        )
    });
    format!("{{\n{}\n}}\n", sites.collect::<Vec<_>>().join(",\n"))
}

impl State {
    fn json(&self) -> String {
        format!(
            "    {}: {{\"pid\": {}, \"answers\": {}, \"seconds\": {}, \"pss_mib\": {}, \"why_not\": {}}}",
            quoted(self.service.name()),
            self.pid.map_or("null".to_owned(), |pid| pid.to_string()),
            self.answers(),
            self.seconds,
            self.pss_mib,
            self.why_not.as_ref().map_or("null".to_owned(), |why| quoted(why)),
        )
    }
}

/// A JSON string (RFC 8259).
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if u32::from(c) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn states() -> Vec<State> {
        let up = State { service: Service::Keystone, pid: Some(7), seconds: 3, pss_mib: 116, why_not: None };
        let down = State {
            service: Service::Glance,
            pid: None,
            seconds: 0,
            pss_mib: 0,
            why_not: Some("a \"b\"\n".to_owned()),
        };
        vec![up, down]
    }

    #[test]
    fn a_person_reads_who_answers_and_who_does_not() {
        let site = Site::named("north", Path::new("/lab")).unwrap();
        let text = table(&site, &states());
        assert!(
            text.contains("north at 127.20.1.1") && text.contains("116 MiB") && text.contains("no: a \"b\""),
            "{text}"
        );
    }

    #[test]
    fn a_program_reads_the_same_as_json() {
        let site = Site::named("north", Path::new("/lab")).unwrap();
        let text = json(&[(site, states())]);
        assert!(
            text.contains(
                r#""keystone": {"pid": 7, "answers": true, "seconds": 3, "pss_mib": 116, "why_not": null}"#
            ),
            "{text}"
        );
        assert!(text.contains(r#""why_not": "a \"b\"\u000a""#), "{text}");
    }
}
