//! The monitor of a process of QEMU: a socket comes in; commands are asked and answered in QMP. What must hold: no answer is
//! waited for past its limit, whatever else is said meanwhile; what is said takes no more memory than it may; after an
//! answer that makes no sense nothing more is asked.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The longest that a process takes to greet; one that serves somebody else at this monitor never does.
const GREETING: Duration = Duration::from_secs(5);
/// The longest that one answer may take: a guest's requests are ended first by some commands.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// One answer is no longer; a process with many disks says much about its nodes.
const ANSWER_BYTES: usize = 32 << 20;
/// So begin the names of all that captures set up. Failures of other nodes are their owner's, and are not remembered; those
/// of ours all are, for no byte is believed behind one.
pub(super) const OURS: &str = "farsite-";

/// A command without a good answer.
#[derive(Debug)]
pub(super) enum NotDone {
    /// The process said why.
    Refused(String),
    /// Whether it was done is not known, and nothing more can be asked.
    Broken(io::Error),
}

impl NotDone {
    pub(super) fn into_error(self) -> io::Error {
        match self {
            Self::Refused(why) => io::Error::other(format!("QEMU says: {why}")),
            Self::Broken(error) => io::Error::new(error.kind(), format!("its QMP monitor: {error}")),
        }
    }
}

/// A connection on which commands can be given.
pub(super) struct Monitor {
    stream: UnixStream,
    unread: Vec<u8>,
    id: u64,
    is_broken: bool,
    /// Children of a quorum that failed at something, and at what.
    failed: BTreeMap<String, String>,
}

impl Monitor {
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut new = Self { stream, unread: Vec::new(), id: 0, is_broken: false, failed: BTreeMap::new() };
        let greeting = new.message(Instant::now() + GREETING).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => io::Error::new(
                error.kind(),
                format!(
                    "no greeting within {} s: does another program hold this monitor?",
                    GREETING.as_secs()
                ),
            ),
            _ => error,
        })?;
        if greeting.get("QMP").is_none() {
            return Err(odd("what answers is no QMP monitor"));
        }
        new.execute("qmp_capabilities", &json!({})).map_err(NotDone::into_error)?;
        Ok(new)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// What has failed so far on a node whose name begins so.
    pub(super) fn failure(&self, prefix: &str) -> Option<&str> {
        let (node, why) = self.failed.range(prefix.to_owned()..).next()?;
        node.starts_with(prefix).then_some(why)
    }

    pub(super) fn forget_failures(&mut self, prefix: &str) {
        self.failed.retain(|node, _| !node.starts_with(prefix));
    }

    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, NotDone> {
        if self.is_broken {
            return Err(NotDone::Broken(io::Error::other("it failed before, and is not asked again")));
        }
        // Whatever comes between the question and its whole answer: the two are out of step.
        self.is_broken = true;
        self.id += 1;
        let question = json!({ "execute": command, "arguments": arguments, "id": self.id });
        let until = Instant::now() + ANSWER;
        self.stream.write_all(format!("{question}\n").as_bytes()).map_err(NotDone::Broken)?;
        loop {
            let mut message = self.message(until).map_err(NotDone::Broken)?;
            if message.get("event").is_some() {
                self.heard(&message);
                continue;
            }
            if message.get("id") != Some(&json!(self.id)) {
                return Err(NotDone::Broken(odd("an answer to another question")));
            }
            if let Some(answer) = message.get_mut("return") {
                self.is_broken = false;
                return Ok(answer.take());
            }
            let Some(why) = message["error"]["desc"].as_str() else {
                return Err(NotDone::Broken(odd("an answer that is neither good nor bad")));
            };
            self.is_broken = false;
            return Err(NotDone::Refused(why.to_owned()));
        }
    }

    fn heard(&mut self, message: &Value) {
        let data = &message["data"];
        if message["event"] == "QUORUM_REPORT_BAD"
            && let Some(node) = data["node-name"].as_str()
            && node.starts_with(OURS)
        {
            let why = data["error"].as_str().unwrap_or("no reason was given");
            self.failed.insert(node.to_owned(), why.to_owned());
        }
    }

    fn message(&mut self, until: Instant) -> io::Result<Value> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.unread[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=searched + end).collect();
                return serde_json::from_slice(&line).map_err(|_| odd("what it says is no JSON"));
            }
            searched = self.unread.len();
            if searched > ANSWER_BYTES {
                return Err(odd("an answer without an end"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 16 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed")),
                Ok(read) => self.unread.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn odd(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_of_ours_is_remembered_however_many_others_there_are() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let mut monitor =
            Monitor { stream, unread: Vec::new(), id: 0, is_broken: false, failed: BTreeMap::new() };
        for node in (0..1000).map(|n| format!("guest-{n}")).chain(["farsite-af".into(), "farsite-bf".into()])
        {
            let data = json!({ "node-name": node, "error": "full" });
            monitor.heard(&json!({ "event": "QUORUM_REPORT_BAD", "data": data }));
        }
        assert_eq!(monitor.failed.len(), 2);
        assert_eq!((monitor.failure("farsite-b"), monitor.failure("farsite-c")), (Some("full"), None));
        monitor.forget_failures("farsite-a");
        assert_eq!((monitor.failure("farsite-a"), monitor.failure("farsite-b")), (None, Some("full")));
    }
}
