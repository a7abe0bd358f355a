//! The coordinator's end: a command is started, asked and listened to. Three threads of its own move the bytes, so that a
//! caller who waits on a thread of the runtime holds up nobody; a fourth gives the process up when it has said nothing for too
//! long, and sees to its end.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use farsite_model::config::Host;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::messages::{Answered, Call, Failure, Hello, Opening, Part, Said};
use super::{LONGEST_ANSWER, PROTOCOL, READS, frames};
use crate::{SourceError, commands};

/// How often the process is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a process that has closed its end may take to say how it ended, and one that was sent away to let go of what it
/// holds.
const CLOSED_LIMIT: Duration = Duration::from_secs(1);
const END_LIMIT: Duration = Duration::from_secs(30);
/// How long one read, or one question of the change tracking, may take at a host that is alive.
const ANSWER_LIMIT: Duration = Duration::from_mins(10);
/// What is kept of what it says on its standard error.
const SAID_LINES: usize = 20;
const SAID_BYTES: u64 = 400;

const OPEN_HINT: &str = "run that command by hand as the agent's user: it has to start `farsite serve-sources` there, without a \
                         question and without a word of its own on standard output";
const BROKEN_HINT: &str = "what it reads stays as it was last captured, and the next run tries again; look at that host, and at the way to it";

/// A process at another host that reads for this one. It ends when this is dropped, and lets go there of what it held.
pub struct Line {
    shared: Arc<Shared>,
    outbox: Sender<Vec<u8>>,
    next: AtomicU64,
}

struct Shared {
    host: String,
    /// The command in words.
    command: String,
    patience: Duration,
    begun: Instant,
    /// When it was heard last, in milliseconds since `begun`.
    heard_ms: AtomicU64,
    state: Mutex<State>,
    /// Nobody asks any more.
    is_over: AtomicBool,
    said: Mutex<Vec<String>>,
    free_reads: Mutex<usize>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<u64, Waiting>,
    ready: Option<oneshot::Sender<()>>,
    /// The process has closed its end, and why that is wrong where it is.
    closed: Option<(Instant, Option<String>)>,
    is_open: bool,
    ended: Option<SourceError>,
}

struct Waiting {
    who: Waiter,
    so_far: Vec<u8>,
    is_read: bool,
}

enum Waiter {
    Task(oneshot::Sender<Result<Vec<u8>, SourceError>>),
    Thread(Sender<Result<Vec<u8>, SourceError>>),
}

impl Waiter {
    fn hear(self, answer: Result<Vec<u8>, SourceError>) {
        // Who waits no more has said so.
        match self {
            Self::Task(who) => drop(who.send(answer)),
            Self::Thread(who) => drop(who.send(answer)),
        }
    }
}

/// A read under way on a thread.
pub(super) struct Asked {
    id: u64,
    answer: Receiver<Result<Vec<u8>, SourceError>>,
}

impl Line {
    /// Starts the host's command and waits until all can be asked.
    pub async fn open(host: &Host, hello: Hello) -> Result<Arc<Self>, SourceError> {
        let shared = Arc::new(Shared {
            host: hello.host.clone(),
            command: host.command.join(" "),
            patience: hello.patience,
            begun: Instant::now(),
            heard_ms: AtomicU64::new(0),
            state: Mutex::default(),
            is_over: AtomicBool::new(false),
            said: Mutex::default(),
            free_reads: Mutex::new(READS),
            freed: Condvar::new(),
        });
        let [program, args @ ..] = host.command.as_slice() else {
            return Err(shared.failed("its command names no program", OPEN_HINT));
        };
        let mut command = Command::new(program);
        command.args(args).env_remove("MYSQL_PWD").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // It is not ended by the kernel together with this process: it hears of that end and lets go of what it holds.
        let mut child = command.spawn().map_err(|error| shared.failed(&error.to_string(), OPEN_HINT))?;
        let (outbox, queue) = mpsc::channel();
        let (ready, is_ready) = oneshot::channel();
        shared.lock().ready = Some(ready);
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else {
            return Err(shared.failed("it has no standard input and output", OPEN_HINT));
        };
        let threads = [
            thread("line-out", {
                let shared = shared.clone();
                move || write(&shared, &queue, input)
            }),
            thread("line-in", {
                let shared = shared.clone();
                move || read(&shared, output)
            }),
            thread("line-err", {
                let shared = shared.clone();
                move || hear(&shared, errors)
            }),
            thread("line-end", {
                let shared = shared.clone();
                move || keep(&shared, child)
            }),
        ];
        if let Some(Err(error)) = threads.into_iter().find(Result::is_err) {
            return Err(shared.failed(&format!("no thread could be started: {error}"), "see `ulimit -u`"));
        }
        let line = Arc::new(Self { shared, outbox, next: AtomicU64::new(1) });
        line.send(&Said::Hello(Box::new(hello)));
        match tokio::time::timeout(line.shared.patience, is_ready).await {
            Ok(Ok(())) => Ok(line),
            Ok(Err(_)) => Err(line.shared.why()),
            Err(_) => {
                let why = format!("it was not ready within {} s", line.shared.patience.as_secs_f64());
                Err(line.shared.failed(&why, OPEN_HINT))
            }
        }
    }

    pub(super) fn host(&self) -> &str {
        &self.shared.host
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, said: &Said) {
        match frames::encode(said, &[]) {
            Ok(bytes) => drop(self.outbox.send(bytes)),
            Err(error) => self.shared.end(self.shared.failed(&error.to_string(), BROKEN_HINT)),
        }
    }

    /// What came of a call is let go there.
    pub(super) fn release(&self, id: u64, part: Option<Part>) {
        self.send(&Said::Release { id, part });
    }

    fn begin(&self, id: u64, call: Call, who: Waiter) {
        {
            let mut state = self.shared.lock();
            if let Some(why) = &state.ended {
                let why = why.clone();
                drop(state);
                return who.hear(Err(why));
            }
            let is_read = matches!(call, Call::Read { .. });
            state.waiting.insert(id, Waiting { who, so_far: Vec::new(), is_read });
        }
        self.send(&Said::Ask { id, call });
    }

    /// Asks and waits. Given up, the call is given up there as well.
    pub(super) async fn ask<T: DeserializeOwned>(&self, id: u64, call: Call) -> Result<T, SourceError> {
        /// Also when the answer has come and nobody was there to take it.
        struct Unanswered<'l>(&'l Line, u64, bool);
        impl Drop for Unanswered<'_> {
            fn drop(&mut self) {
                if !self.2 {
                    self.0.shared.lock().waiting.remove(&self.1);
                    self.0.release(self.1, None);
                }
            }
        }
        let (who, answer) = oneshot::channel();
        self.begin(id, call, Waiter::Task(who));
        let mut unanswered = Unanswered(self, id, false);
        let answer = answer.await.unwrap_or_else(|_| Err(self.shared.why()));
        unanswered.2 = true;
        self.parse(&answer?)
    }

    /// The same on this thread.
    pub(super) fn ask_now<T: DeserializeOwned>(&self, id: u64, call: Call) -> io::Result<T> {
        let answer = self.answer(self.begin_now(id, call))?;
        self.parse(&answer).map_err(io::Error::other)
    }

    /// A read is begun as soon as there is room for one more.
    pub(super) fn begin_read(&self, call: Call) -> Asked {
        let mut free = self.shared.free_reads.lock().expect("no holder of this lock panics");
        while *free == 0 {
            free = self.shared.freed.wait(free).expect("no holder of this lock panics");
        }
        *free -= 1;
        drop(free);
        let asked = self.begin_now(self.next_id(), call);
        if self.shared.lock().ended.is_some() {
            // Nobody takes it for a read that came back.
            self.shared.free_read();
        }
        asked
    }

    fn begin_now(&self, id: u64, call: Call) -> Asked {
        let (who, answer) = mpsc::channel();
        self.begin(id, call, Waiter::Thread(who));
        Asked { id, answer }
    }

    pub(super) fn answer(&self, asked: Asked) -> io::Result<Vec<u8>> {
        let answer = match asked.answer.recv_timeout(ANSWER_LIMIT) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(self.shared.why()),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(waiting) = self.shared.lock().waiting.remove(&asked.id)
                    && waiting.is_read
                {
                    self.shared.free_read();
                }
                self.release(asked.id, None);
                let limit = ANSWER_LIMIT.as_secs();
                let what = format!("host {}: reading", self.shared.host);
                Err(SourceError::new(what, format!("one answer took longer than {limit} s"))
                    .hint("look what its storage waits for"))
            }
        };
        answer.map_err(io::Error::other)
    }

    fn parse<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T, SourceError> {
        serde_json::from_slice(answer)
            .map_err(|error| self.shared.failed(&format!("its answer makes no sense: {error}"), BROKEN_HINT))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The outbox goes as well, and with it the process's input: it ends by itself.
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn failed(&self, why: &str, hint: &str) -> SourceError {
        let what = format!("host {}, through `{}`", self.host, self.command);
        SourceError::new(what, format!("{why}{}", self.said())).hint(hint)
    }

    fn said(&self) -> String {
        commands::shown(&self.said.lock().expect("no holder of this lock panics").join("\n"))
    }

    fn why(&self) -> SourceError {
        let ended = self.lock().ended.clone();
        ended.unwrap_or_else(|| self.failed("it does not answer any more", BROKEN_HINT))
    }

    fn free_read(&self) {
        *self.free_reads.lock().expect("no holder of this lock panics") += 1;
        self.freed.notify_one();
    }

    /// Everybody who waits hears why nothing comes any more; the first reason counts.
    fn end(&self, why: SourceError) {
        let (why, waiting) = {
            let mut state = self.lock();
            let why = state.ended.get_or_insert(why).clone();
            state.ready = None;
            (why, std::mem::take(&mut state.waiting))
        };
        for waiting in waiting.into_values() {
            if waiting.is_read {
                self.free_read();
            }
            waiting.who.hear(Err(why.clone()));
        }
    }

    fn heard(&self) {
        self.heard_ms.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.heard_ms.load(Ordering::Relaxed)))
    }

    /// One frame of the other end. An error is one of the line, and ends it.
    fn take(&self, frame: frames::Frame) -> Result<(), String> {
        let odd = |error: serde_json::Error| format!("its words make no sense: {error}");
        match serde_json::from_slice(&frame.header).map_err(odd)? {
            Answered::Alive => {}
            Answered::Ready => {
                let mut state = self.lock();
                state.is_open = true;
                if let Some(ready) = state.ready.take() {
                    let _ = ready.send(());
                }
            }
            Answered::Refused(failure) => self.end(failure.at(&self.host)),
            Answered::Failed { id, failure } => self.answered(id, Err(failure)),
            Answered::Answer { id, more: true } => {
                if let Some(waiting) = self.lock().waiting.get_mut(&id) {
                    waiting.so_far.extend_from_slice(&frame.body);
                    if waiting.so_far.len() > LONGEST_ANSWER {
                        return Err(format!("its answer is longer than {LONGEST_ANSWER} bytes"));
                    }
                }
            }
            Answered::Answer { id, more: false } => self.answered(id, Ok(frame.body)),
        }
        Ok(())
    }

    fn answered(&self, id: u64, answer: Result<Vec<u8>, Failure>) {
        let Some(waiting) = self.lock().waiting.remove(&id) else { return };
        if waiting.is_read {
            self.free_read();
        }
        let answer = answer.map_err(|failure| failure.at(&self.host)).map(|last| {
            if waiting.so_far.is_empty() {
                return last;
            }
            let mut whole = waiting.so_far;
            whole.extend_from_slice(&last);
            whole
        });
        waiting.who.hear(answer);
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Sends what is to be said, and a sign of life when that is nothing. The input is closed when nobody asks any more.
fn write(shared: &Shared, queue: &Receiver<Vec<u8>>, mut input: ChildStdin) {
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

fn read(shared: &Shared, output: ChildStdout) {
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
fn hear(shared: &Shared, errors: ChildStderr) {
    let mut errors = BufReader::new(errors);
    loop {
        let mut line = Vec::new();
        match (&mut errors).take(SAID_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
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
fn keep(shared: &Shared, mut child: Child) {
    let mut over_since: Option<Instant> = None;
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                // Its last words are on their way.
                std::thread::sleep(LOOK);
                let closed = shared.lock().closed.take().and_then(|(_, why)| why);
                let why = closed.unwrap_or_else(|| format!("it ended with {status}"));
                return shared.end(shared.failed(&why, shared.hint()));
            }
            Err(error) => return shared.end(shared.failed(&error.to_string(), shared.hint())),
        }
        let closed_for = shared.lock().closed.as_ref().map(|(since, _)| since.elapsed());
        if shared.is_over.load(Ordering::Relaxed) {
            over_since.get_or_insert_with(Instant::now);
        }
        let is_over = over_since.is_some_and(|since| since.elapsed() > END_LIMIT);
        let silent = shared.silent_for();
        if silent > shared.patience {
            let why = format!("it has said nothing for {} s and was given up", silent.as_secs());
            shared.end(shared.failed(&why, shared.hint()));
        } else if over_since.is_none() && closed_for.is_some_and(|closed| closed > CLOSED_LIMIT) {
            let why = shared.lock().closed.take().and_then(|(_, why)| why);
            let why = why.unwrap_or_else(|| "it closed its end without ending".to_owned());
            shared.end(shared.failed(&why, shared.hint()));
        }
        // Once it has ended for the others, nothing more comes of it.
        if is_over || (over_since.is_none() && shared.lock().ended.is_some()) || silent > shared.patience {
            kill(&mut child);
        }
        std::thread::sleep(LOOK);
    }
}

impl Shared {
    fn hint(&self) -> &'static str {
        if self.lock().is_open { BROKEN_HINT } else { OPEN_HINT }
    }
}

/// The command and what it has started.
fn kill(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
}
