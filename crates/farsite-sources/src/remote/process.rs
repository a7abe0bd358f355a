//! The process at the far end, seen from here: what moves its bytes and looks after it, each on a thread of its own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::line::Shared;
use super::messages::{Opening, Said};
use super::{PROTOCOL, frames};

/// How often the process is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a process that has closed its end may take to say how it ended, and one that was sent away to let go of what it
/// holds.
const CLOSED_LIMIT: Duration = Duration::from_secs(1);
const END_LIMIT: Duration = Duration::from_secs(30);
/// What is kept of what it says on its standard error.
const SAID_LINES: usize = 20;
const SAID_BYTES: u64 = 400;

pub(super) fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Sends what is to be said, and a sign of life when that is nothing. The input is closed when nobody asks any more.
pub(super) fn write(shared: &Shared, queue: &Receiver<Vec<u8>>, mut input: ChildStdin) {
    let opening = Opening { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
    let mut begin = frames::MAGIC.to_vec();
    begin.extend(frames::encode(&opening, &[]).unwrap_or_default());
    let alive = frames::encode(&Said::Alive, &[]).unwrap_or_default();
    let mut written = input.write_all(&begin);
    while written.is_ok() {
        written = match queue.recv_timeout(shared.patience / 4) {
            Ok(bytes) => input.write_all(&bytes),
            Err(RecvTimeoutError::Timeout) => input.write_all(&alive),
            Err(RecvTimeoutError::Disconnected) => return,
        };
    }
}

pub(super) fn read(shared: &Shared, output: ChildStdout) {
    let why = listen(shared, &mut BufReader::with_capacity(64 << 10, output)).err();
    shared.lock().closed = Some((Instant::now(), why));
}

fn listen(shared: &Shared, from: &mut impl Read) -> Result<(), String> {
    let mut magic = Vec::new();
    from.take(frames::MAGIC.len() as u64).read_to_end(&mut magic).map_err(|error| error.to_string())?;
    if magic.is_empty() {
        return Ok(());
    }
    if magic != frames::MAGIC {
        // A login's greeting, or another program: its first line says which.
        let mut more = Vec::new();
        let _ = BufReader::new(from).take(SAID_BYTES).read_until(b'\n', &mut more);
        magic.extend(more);
        return Err(format!(
            "it is not `farsite serve-sources` that answers, but {:?}",
            String::from_utf8_lossy(&magic)
        ));
    }
    let mut next = || frames::read(from).map_err(|error| error.to_string());
    let Some(frame) = next()? else { return Ok(()) };
    let theirs: Opening = serde_json::from_slice(&frame.header).map_err(|error| error.to_string())?;
    if theirs.protocol != PROTOCOL {
        return Err(format!(
            "it speaks protocol {} (farsite {}), and this host speaks {PROTOCOL} (farsite {}): both need the same version",
            theirs.protocol,
            theirs.version,
            env!("CARGO_PKG_VERSION")
        ));
    }
    while let Some(frame) = next()? {
        shared.heard();
        shared.take(frame)?;
    }
    Ok(())
}

/// Keeps the last lines of what it says.
pub(super) fn hear(shared: &Shared, errors: ChildStderr) {
    let mut errors = BufReader::new(errors);
    loop {
        let mut line = Vec::new();
        match (&mut errors).take(SAID_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return shared.has_said_all.store(true, Ordering::Release),
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        tracing::info!(host = %shared.host, "it says: {line}");
        let mut said = shared.said.lock().expect("no holder of this lock panics");
        said.push(line);
        let many = said.len().saturating_sub(SAID_LINES);
        said.drain(..many);
    }
}

/// Looks after the process until it has ended.
pub(super) fn keep(shared: &Shared, mut child: Child) {
    let mut over_since: Option<Instant> = None;
    let mut is_given_up = false;
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                // Its last words are on their way. What it has left running may hold its ends open: that is not waited for.
                let ended = Instant::now();
                let has_all =
                    || shared.has_said_all.load(Ordering::Acquire) && shared.lock().closed.is_some();
                while !has_all() && ended.elapsed() < CLOSED_LIMIT {
                    std::thread::sleep(LOOK / 10);
                }
                let closed = shared.lock().closed.take().and_then(|(_, why)| why);
                let why = closed.unwrap_or_else(|| format!("it ended with {status}"));
                return shared.end(shared.failed(&why, shared.hint()));
            }
            Err(error) => return shared.end(shared.failed(&error.to_string(), shared.hint())),
        }
        let closed_for = shared.lock().closed.as_ref().map(|(since, _)| since.elapsed());
        // In this order: who stops it says first that it is over.
        let has_ended = shared.lock().ended.is_some();
        if shared.is_over.load(Ordering::Relaxed) {
            over_since.get_or_insert_with(Instant::now);
        }
        let is_over = over_since.is_some_and(|since| since.elapsed() > END_LIMIT);
        // Once it has ended for the others, nothing more comes of it.
        is_given_up |= over_since.is_none() && has_ended;
        let silent = shared.silent_for();
        // While it lets go of what it holds it says nothing, and has a limit of its own for that.
        if over_since.is_none() && silent > shared.patience {
            is_given_up = true;
            let why = format!("it has said nothing for {} s and was given up", silent.as_secs());
            shared.end(shared.failed(&why, shared.hint()));
        } else if over_since.is_none() && closed_for.is_some_and(|closed| closed > CLOSED_LIMIT) {
            is_given_up = true;
            let why = shared.lock().closed.take().and_then(|(_, why)| why);
            let why = why.unwrap_or_else(|| "it closed its end without ending".to_owned());
            shared.end(shared.failed(&why, shared.hint()));
        }
        if is_over || is_given_up {
            kill(&mut child);
        }
        std::thread::sleep(LOOK);
    }
}

/// The command and what it has started.
fn kill(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
}
