//! The coordinator's end: a command is started, asked and listened to. Three threads of its own move the bytes, so that a
//! caller who waits on a thread of the runtime holds up nobody; a fourth gives the process up when it has said nothing for too
//! long, and sees to its end.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use farsite_model::config::Host;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::messages::{Answered, Call, Failure, Hello, Part, Said};
use super::{LONGEST_ANSWER, READS, frames, process};
use crate::{SourceError, commands};

/// How long one read, or one question of the change tracking, may take at a host that is alive.
const ANSWER_LIMIT: Duration = Duration::from_mins(10);
const OPEN_HINT: &str = "run that command by hand as the agent's user: it has to start `farsite serve-sources` there, without a \
                         question and without a word of its own on standard output";
const BROKEN_HINT: &str = "what it reads stays as it was last captured, and the next run tries again; look at that host, and at the way to it";

/// A process at another host that reads for this one. It ends when this is dropped, and lets go there of what it held.
pub struct Line {
    shared: Arc<Shared>,
    outbox: Sender<Vec<u8>>,
    next: AtomicU64,
}

pub(super) struct Shared {
    pub(super) host: String,
    /// The command in words.
    command: String,
    pub(super) patience: Duration,
    begun: Instant,
    /// When it was heard last, in milliseconds since `begun`.
    heard_ms: AtomicU64,
    state: Mutex<State>,
    /// Nobody asks any more.
    pub(super) is_over: AtomicBool,
    pub(super) said: Mutex<Vec<String>>,
    /// It says no more.
    pub(super) has_said_all: AtomicBool,
    free_reads: Mutex<usize>,
    freed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    waiting: BTreeMap<u64, Waiting>,
    ready: Option<oneshot::Sender<()>>,
    /// The process has closed its end, and why that is wrong where it is.
    pub(super) closed: Option<(Instant, Option<String>)>,
    is_open: bool,
    pub(super) ended: Option<SourceError>,
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
            has_said_all: AtomicBool::new(false),
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
            process::thread("line-out", {
                let shared = shared.clone();
                move || process::write(&shared, &queue, input)
            }),
            process::thread("line-in", {
                let shared = shared.clone();
                move || process::read(&shared, output)
            }),
            process::thread("line-err", {
                let shared = shared.clone();
                move || process::hear(&shared, errors)
            }),
            process::thread("line-end", {
                let shared = shared.clone();
                move || process::keep(&shared, child)
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
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    pub(super) fn failed(&self, why: &str, hint: &str) -> SourceError {
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
    pub(super) fn end(&self, why: SourceError) {
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

    pub(super) fn heard(&self) {
        self.heard_ms.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn silent_for(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.heard_ms.load(Ordering::Relaxed)))
    }

    /// One frame of the other end. An error is one of the line, and ends it.
    pub(super) fn take(&self, frame: frames::Frame) -> Result<(), String> {
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

impl Shared {
    pub(super) fn hint(&self) -> &'static str {
        if self.lock().is_open { BROKEN_HINT } else { OPEN_HINT }
    }
}
