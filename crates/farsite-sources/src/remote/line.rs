//! The coordinator's end: a command is started, asked and listened to. Three threads of its own move the bytes, so that a
//! caller who waits on a thread of the runtime holds up nobody; a fourth gives the process up when it has said nothing for too
//! long, and sees to its end.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use farsite_model::config::Host;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::messages::{Answered, Call, Failure, Hello, Part, Said};
use super::room::{Place, Room};
use super::{LONGEST_ANSWER, READS, frames, process};
use crate::{SourceError, commands};

/// How long one question may take at a host that is alive, where who asks has no limit of its own; and how long a read may
/// wait for room. A disk that hangs there must not hang the round here.
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
    /// One answer.
    answer_limit: Duration,
    room: Arc<Room>,
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
    /// Of a read: it is free for the next one when nobody waits for this one any more.
    _place: Option<Place>,
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

/// A question under way on a thread. Dropped before its answer was taken, it is given up there as well.
pub(super) struct Asked<'l> {
    line: &'l Line,
    id: u64,
    answer: Receiver<Result<Vec<u8>, SourceError>>,
    is_answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.line.give_up(self.id);
        }
    }
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
            answer_limit: ANSWER_LIMIT,
            room: Room::new(READS),
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

    /// Nobody wants anything of it any more: who waits hears that now, and the process ends when they have let go.
    pub fn stop(&self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let what = format!("host {}: reading", self.shared.host);
        self.shared.end(SourceError::new(what, "the run was told to stop"));
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

    fn give_up(&self, id: u64) {
        let waiting = self.shared.lock().waiting.remove(&id);
        drop(waiting);
        self.release(id, None);
    }

    fn begin(&self, id: u64, call: Call, who: Waiter, place: Option<Place>) {
        {
            let mut state = self.shared.lock();
            if let Some(why) = &state.ended {
                let why = why.clone();
                drop(state);
                return who.hear(Err(why));
            }
            state.waiting.insert(id, Waiting { who, so_far: Vec::new(), _place: place });
        }
        self.send(&Said::Ask { id, call });
    }

    /// Asks and waits. Given up, the call is given up there as well. `limit`: of who asks, where there is one.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        id: u64,
        call: Call,
        limit: Option<Duration>,
    ) -> Result<T, SourceError> {
        /// Also when the answer has come and nobody was there to take it.
        struct Unanswered<'l>(&'l Line, u64, bool);
        impl Drop for Unanswered<'_> {
            fn drop(&mut self) {
                if !self.2 {
                    self.0.give_up(self.1);
                }
            }
        }
        let (who, answer) = oneshot::channel();
        self.begin(id, call, Waiter::Task(who), None);
        let mut unanswered = Unanswered(self, id, false);
        let limit = limit.unwrap_or(self.shared.answer_limit);
        let answer =
            tokio::time::timeout(limit, answer).await.map_err(|_| self.shared.late("asking", limit))?;
        unanswered.2 = true;
        self.parse(&answer.unwrap_or_else(|_| Err(self.shared.why()))?)
    }

    /// The same on this thread.
    pub(super) fn ask_now<T: DeserializeOwned>(&self, id: u64, call: Call) -> io::Result<T> {
        let answer = self.answer(self.begin_now(id, call, None))?;
        self.parse(&answer).map_err(io::Error::other)
    }

    /// A read is begun as soon as there is room for one more.
    pub(super) fn begin_read(&self, call: Call) -> io::Result<Asked<'_>> {
        let limit = self.shared.answer_limit;
        let place = self.shared.room.take(limit);
        let place = place.map_err(|_| io::Error::other(self.shared.late("reading", limit)))?;
        Ok(self.begin_now(self.next_id(), call, Some(place)))
    }

    fn begin_now(&self, id: u64, call: Call, place: Option<Place>) -> Asked<'_> {
        let (who, answer) = mpsc::channel();
        self.begin(id, call, Waiter::Thread(who), place);
        Asked { line: self, id, answer, is_answered: false }
    }

    pub(super) fn answer(&self, mut asked: Asked<'_>) -> io::Result<Vec<u8>> {
        let limit = self.shared.answer_limit;
        let answer = match asked.answer.recv_timeout(limit) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(self.shared.why()),
            Err(RecvTimeoutError::Timeout) => {
                return Err(io::Error::other(self.shared.late("reading", limit)));
            }
        };
        asked.is_answered = true;
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

    /// It is alive, and one thing takes it too long.
    fn late(&self, doing: &str, limit: Duration) -> SourceError {
        let what = format!("host {}: {doing}", self.host);
        SourceError::new(what, format!("one answer took longer than {} s", limit.as_secs_f64()))
            .hint("look what its storage waits for; what it reads stays as it was last captured, and the next run tries again")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Part as Piece;

    const LIMIT: Duration = Duration::from_millis(300);

    fn shared(patience: Duration) -> Arc<Shared> {
        Arc::new(Shared {
            host: "stor1".into(),
            command: "ssh stor1".into(),
            patience,
            begun: Instant::now(),
            heard_ms: AtomicU64::new(0),
            state: Mutex::default(),
            is_over: AtomicBool::new(false),
            said: Mutex::default(),
            has_said_all: AtomicBool::new(false),
            answer_limit: LIMIT,
            room: Room::new(READS),
        })
    }

    /// A line to a host that is alive and hears everything, and whose disk hangs; and what it hears.
    fn hanging() -> (Arc<Line>, Receiver<Vec<u8>>) {
        let (outbox, heard) = mpsc::channel();
        (Arc::new(Line { shared: shared(Duration::from_mins(1)), outbox, next: AtomicU64::new(1) }), heard)
    }

    /// How many calls were asked and how many given up.
    fn said(heard: &Receiver<Vec<u8>>) -> (usize, usize) {
        let mut counts = (0, 0);
        while let Ok(frame) = heard.try_recv() {
            let frame = frames::read(&mut frame.as_slice()).unwrap().unwrap();
            match serde_json::from_slice(&frame.header).unwrap() {
                Said::Ask { .. } => counts.0 += 1,
                Said::Release { part: None, .. } => counts.1 += 1,
                _ => {}
            }
        }
        counts
    }

    /// More readers than there is room for, each of which wants 16 pieces.
    fn read_by_many(line: &Arc<Line>) -> Vec<std::thread::JoinHandle<(io::Error, Duration)>> {
        let files = Arc::new(super::super::content::FarFiles::new(super::super::client::Held {
            line: line.clone(),
            id: line.next_id(),
            part: Part::Content,
        }));
        let readers = (0..7).map(|_| {
            let files = files.clone();
            std::thread::spawn(move || {
                let (begun, mut buffer) = (Instant::now(), vec![0; 16 * super::super::READ_BYTES]);
                let part = Piece { file: 0, offset: 0, buffer: &mut buffer };
                let error = crate::tree::TreeFiles::read(&*files, &mut [part]).unwrap_err();
                (error, begun.elapsed())
            })
        });
        readers.collect()
    }

    #[test]
    fn a_disk_that_hangs_at_another_host_hangs_no_reader_here_and_what_was_asked_is_given_up_there() {
        let (line, heard) = hanging();
        for reader in read_by_many(&line) {
            let (error, took) = reader.join().unwrap();
            assert!(error.to_string().contains("host stor1: reading: one answer took longer"), "{error}");
            assert!(took < 10 * LIMIT, "{took:?}");
        }
        assert!(line.shared.lock().waiting.is_empty());
        let (asked, given_up) = said(&heard);
        assert!(asked >= READS && given_up == asked, "{asked} asked, {given_up} given up");
        // All the room is there again.
        let places: Vec<_> = (0..READS).map(|_| line.shared.room.take(Duration::ZERO).unwrap()).collect();
        assert!(line.shared.room.take(Duration::ZERO).is_err());
        drop(places);
    }

    #[test]
    fn a_run_that_is_told_to_stop_wakes_who_reads_and_who_waits_for_room() {
        let (outbox, _heard) = mpsc::channel();
        let mut shared = shared(Duration::from_mins(1));
        Arc::get_mut(&mut shared).unwrap().answer_limit = Duration::from_mins(10);
        let line = Arc::new(Line { shared, outbox, next: AtomicU64::new(1) });
        let readers = read_by_many(&line);
        std::thread::sleep(Duration::from_millis(100));
        line.stop();
        for reader in readers {
            let (error, _) = reader.join().unwrap();
            assert!(error.to_string().contains("told to stop"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_question_that_nobody_answers_ends_and_is_given_up_there() {
        let (line, heard) = hanging();
        for limit in [None, Some(Duration::from_millis(10))] {
            let call = Call::Entries { of: 1 };
            let error = line.ask::<()>(line.next_id(), call, limit).await.unwrap_err();
            assert!(error.to_string().contains("host stor1: asking: one answer took longer"), "{error}");
        }
        assert_eq!(said(&heard), (2, 2));
        assert!(line.shared.lock().waiting.is_empty());
    }

    #[test]
    fn a_process_that_takes_longer_to_let_go_than_it_may_be_silent_is_waited_for() {
        let shared = shared(Duration::from_millis(100));
        let said = "read line; sleep 1; exit 7";
        let child =
            Command::new("sh").args(["-c", said]).stdin(Stdio::null()).process_group(0).spawn().unwrap();
        shared.is_over.store(true, Ordering::Relaxed);
        process::keep(&shared, child);
        let why = shared.why().to_string();
        assert!(why.contains("exit status: 7"), "{why}");
    }

    #[test]
    fn a_process_that_says_nothing_is_sent_away() {
        let shared = shared(Duration::from_millis(100));
        let mut command = Command::new("sleep");
        let child = command.arg("60").stdin(Stdio::null()).process_group(0).spawn().unwrap();
        let begun = Instant::now();
        process::keep(&shared, child);
        assert!(begun.elapsed() < Duration::from_secs(20));
        let why = shared.why().to_string();
        assert!(why.contains("it has said nothing for"), "{why}");
    }
}
