//! Ships a database's log between points: the streaming client writes files into a spool, this task tails them, and a
//! segment leaves every second or every few MiB. After a restart it goes on behind the last byte that is durable.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use farsite_model::clock::Clock;
use farsite_model::rpo::CaptureStamp;
use farsite_model::{CaptureTime, Epoch, GroupName, RunId, SiteName, StoreTime};
use farsite_sources::{LogPosition, LogStream, LoggedDatabase};
use farsite_store::Store;
use farsite_store::keys::Signer;
use farsite_store::logs::{self, SEGMENT_BYTES, SegmentHeader, TimelineId};
use farsite_store::manifest::{LogPoint, ManifestItem};
use farsite_store::seal::Sealer;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ReplicateError;
use crate::run_clock::{Compared, RunClock};

/// How often the spool is looked at.
const TICK: Duration = Duration::from_millis(400);
/// An idle database still says that it is covered, this often.
const IDLE_MARK: Duration = Duration::from_secs(3);
/// The clocks are compared again after this long.
const ANCHOR_AGE: Duration = Duration::from_secs(20);
/// A client that dies this often without shipping anything in between cannot go on from there.
const DEATHS_AT_ONE_PLACE: u32 = 8;
/// A streaming client that dies is started again after this long.
const RESTART: Duration = Duration::from_secs(1);

/// What must survive a restart; written before and after nothing else: it only says what is durable at the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Timeline {
    pub id: TimelineId,
    /// The epoch in which it was begun: a promotion ends a timeline.
    pub epoch: Epoch,
    /// The run that wrote its base. Until that run has committed, nobody else may build on it.
    pub run: RunId,
    /// The base that replay starts on, as the next manifest carries it.
    pub base: ManifestItem,
    pub base_position: LogPoint,
    pub next_sequence: u64,
    /// Shipped up to here.
    pub shipped: LogPoint,
}

impl Timeline {
    pub fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
    pub fn save(&self, path: &Path) -> Result<(), ReplicateError> {
        let fail = || ReplicateError::io(format!("writing {}", path.display()));
        let temporary = path.with_extension("new");
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail())?;
        }
        std::fs::write(&temporary, serde_json::to_vec(self).expect("a timeline is valid JSON"))
            .map_err(fail())?;
        std::fs::File::open(&temporary).and_then(|f| f.sync_all()).map_err(fail())?;
        std::fs::rename(&temporary, path).map_err(fail())
    }
}

pub(crate) fn to_point(position: &LogPosition) -> LogPoint {
    LogPoint { file: position.file.clone(), offset: position.offset }
}
pub(crate) fn to_position(point: &LogPoint) -> LogPosition {
    LogPosition { file: point.file.clone(), offset: point.offset }
}

/// How far shipping has come.
#[derive(Debug, Clone)]
pub struct Progress {
    pub shipped: LogPosition,
    /// The log has a gap: a new base is needed.
    pub broken: Option<String>,
    /// Trouble that may pass, in words.
    pub trouble: Option<String>,
}

/// A running shipper; it ends when dropped.
pub struct Shipper {
    pub progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.task.abort();
    }
}

/// What a shipper works with.
pub struct Work {
    pub store: Store,
    pub signer: Arc<Signer>,
    pub sealer: Sealer,
    pub clock: Arc<dyn Clock>,
    pub group: GroupName,
    pub site: SiteName,
    pub epoch: Epoch,
    pub database: Arc<dyn LoggedDatabase>,
    pub timeline: Timeline,
    /// Where the timeline's state is kept.
    pub state_file: PathBuf,
    pub spool: PathBuf,
}

impl Shipper {
    pub fn start(work: Work) -> Self {
        let first = Progress { shipped: to_position(&work.timeline.shipped), broken: None, trouble: None };
        let (sender, progress) = watch::channel(first);
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let task = tokio::spawn(async move {
            let mut work = work;
            tokio::select! {
                () = stop.cancelled() => {}
                () = ship(&mut work, &sender) => {}
            }
        });
        Self { progress, cancel, task }
    }

    /// Waits until everything up to `position` is durable at the standby.
    pub async fn wait_for(&mut self, position: &LogPosition, limit: Duration) -> Result<(), String> {
        let reached = async {
            loop {
                let now = self.progress.borrow_and_update().clone();
                if let Some(broken) = now.broken {
                    return Err(broken);
                }
                if now.shipped >= *position {
                    return Ok(());
                }
                if self.progress.changed().await.is_err() {
                    return Err("log shipping has stopped".to_owned());
                }
            }
        };
        if let Ok(result) = tokio::time::timeout(limit, reached).await {
            result
        } else {
            let now = self.progress.borrow().clone();
            Err(format!(
                "its log is shipped up to {}:{} and not to {}:{} within {}s{}",
                now.shipped.file,
                now.shipped.offset,
                position.file,
                position.offset,
                limit.as_secs(),
                now.trouble.map(|t| format!(" ({t})")).unwrap_or_default()
            ))
        }
    }
}

async fn ship(work: &mut Work, progress: &watch::Sender<Progress>) {
    let mut stream: Option<LogStream> = None;
    let mut clock: Option<(RunClock, Compared)> = None;
    let mut last_mark = Instant::now();
    // What is durable at the store is not known: nothing is written until it is.
    let mut unsure = false;
    // How often shipping has stopped at the same place: an event that is torn at the server stops it there for ever.
    let mut stopped_at = (work.timeline.shipped.clone(), 0u32);
    loop {
        let ticked = if unsure {
            Err(Stop::Trouble("what is shipped could not be listed".into()))
        } else {
            tick(work, &mut stream, &mut clock, &mut last_mark, progress).await
        };
        if let Err(stop) = ticked {
            let client_died = matches!(stop, Stop::ClientDied(_));
            match stop {
                Stop::Gap(why) => {
                    tracing::error!(group = %work.group, "the log has a gap, a new base is needed: {why}");
                    progress.send_modify(|p| p.broken = Some(why));
                    return;
                }
                Stop::Trouble(why) | Stop::ClientDied(why) => {
                    tracing::warn!(group = %work.group, "log shipping: {why}");
                    if client_died && stopped_at.0 == work.timeline.shipped {
                        stopped_at.1 += 1;
                    } else {
                        stopped_at = (work.timeline.shipped.clone(), u32::from(client_died));
                    }
                    if stopped_at.1 >= DEATHS_AT_ONE_PLACE {
                        let why = format!(
                            "the streaming client died {} times at the same place: {why}",
                            stopped_at.1
                        );
                        tracing::error!(group = %work.group, "a new base is needed: {why}");
                        progress.send_modify(|p| p.broken = Some(why));
                        return;
                    }
                    progress.send_modify(|p| p.trouble = Some(why));
                    stream = None;
                    tokio::time::sleep(RESTART).await;
                    // A segment may have become durable though its answer was lost: what is listed counts, or the
                    // next segment would overlap it and end the unbroken run.
                    match reconcile(&work.store, &work.group, &work.site, &mut work.timeline).await {
                        Ok(()) => {}
                        Err(Reconcile::Gap(why)) => {
                            tracing::error!(group = %work.group, "the log has a gap, a new base is needed: {why}");
                            progress.send_modify(|p| p.broken = Some(why));
                            return;
                        }
                        Err(Reconcile::Unknown(error)) => {
                            tracing::warn!(group = %work.group, "log shipping: {error}");
                            unsure = true;
                            continue;
                        }
                    }
                    unsure = false;
                }
            }
        } else {
            progress.send_modify(|p| {
                p.shipped = to_position(&work.timeline.shipped);
                p.trouble = None;
            });
            tokio::time::sleep(TICK).await;
        }
    }
}

enum Stop {
    Gap(String),
    Trouble(String),
    /// The streaming client ended by itself, though the server answered.
    ClientDied(String),
}

async fn tick(
    work: &mut Work,
    stream: &mut Option<LogStream>,
    clock: &mut Option<(RunClock, Compared)>,
    last_mark: &mut Instant,
    progress: &watch::Sender<Progress>,
) -> Result<(), Stop> {
    let trouble = |error: &dyn std::fmt::Display| Stop::Trouble(error.to_string());
    let (clock, compared) = match clock {
        Some(anchored) if anchored.1.age() < ANCHOR_AGE => anchored,
        _ => {
            let fresh = RunClock::begin(&*work.clock);
            let compared = fresh.compare(&work.store).await.map_err(|e| trouble(&e))?;
            clock.insert((fresh, compared))
        }
    };
    if let Some(running) = stream
        && let Ok(Some(status)) = running.child.try_wait()
    {
        let said = running.said();
        *stream = None;
        return Err(Stop::ClientDied(format!("the streaming client ended ({status}): {said}")));
    }
    if stream.is_none() {
        std::fs::create_dir_all(&work.spool).map_err(|e| trouble(&e))?;
        forget_successors(&work.spool, &work.timeline.shipped).map_err(|e| trouble(&e))?;
        let from = to_position(&work.timeline.shipped);
        match work.database.stream_log(work.spool.clone(), &from).await {
            Ok(started) => *stream = Some(started),
            Err(error) if error.is_gap() => return Err(Stop::Gap(error.to_string())),
            Err(error) => return Err(trouble(&error)),
        }
    }
    // Time first, position second: everything up to the position was there at that time.
    let (captured, position) = work.database.position(clock).await.map_err(|e| trouble(&e))?;
    let mut said_covered = false;
    while let Some((file, bytes)) =
        next_bytes(&work.spool, &work.timeline.shipped).map_err(|e| trouble(&e))?
    {
        if file != work.timeline.shipped.file {
            complete(work).await?;
        }
        let first = if file == work.timeline.shipped.file { work.timeline.shipped.offset } else { 0 };
        let last = first + bytes.len() as u64;
        let covers = LogPosition { file: file.clone(), offset: last } >= position;
        segment(work, (clock, compared), &file, first, &bytes, covers.then_some(captured))
            .await
            .map_err(|e| trouble(&e))?;
        said_covered |= covers;
        progress.send_modify(|p| p.shipped = to_position(&work.timeline.shipped));
    }
    if said_covered {
        *last_mark = Instant::now();
    } else if to_position(&work.timeline.shipped) >= position && last_mark.elapsed() >= IDLE_MARK {
        let shipped = work.timeline.shipped.clone();
        segment(work, (clock, compared), &shipped.file, shipped.offset, &[], Some(captured))
            .await
            .map_err(|e| trouble(&e))?;
        *last_mark = Instant::now();
    }
    Ok(())
}

/// Before a file is left behind the server itself says how long it was: a spool that is being written anew, or a tail
/// that the client still holds back, must not become a hole in the log.
async fn complete(work: &Work) -> Result<(), Stop> {
    let shipped = &work.timeline.shipped;
    match work.database.log_bytes(&shipped.file).await {
        Ok(Some(bytes)) if bytes == shipped.offset => Ok(()),
        Ok(Some(bytes)) => Err(Stop::Trouble(format!(
            "{} has {bytes} bytes at the server, {} of them are shipped, and the next file is there already: it is read again",
            shipped.file, shipped.offset
        ))),
        Ok(None) => Err(Stop::Gap(format!(
            "the server removed {} before it could be compared with what was shipped of it",
            shipped.file
        ))),
        Err(error) => Err(Stop::Trouble(error.to_string())),
    }
}

/// The next stretch of the spool behind what is shipped: of the same file, or, when that one is complete (its
/// successor exists), of the next.
fn next_bytes(spool: &Path, shipped: &LogPoint) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let read = |file: &str, from: u64| -> std::io::Result<Option<(String, Vec<u8>)>> {
        let opened = match std::fs::File::open(spool.join(file)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        // After a restart the client writes the file again from its beginning.
        let available = opened.metadata()?.len().saturating_sub(from).min(SEGMENT_BYTES as u64);
        if available == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; available as usize];
        opened.read_exact_at(&mut bytes, from)?;
        Ok(Some((file.to_owned(), bytes)))
    };
    if let Some(found) = read(&shipped.file, shipped.offset)? {
        return Ok(Some(found));
    }
    // The length of a file that is still being rewritten says nothing about what follows.
    let complete = std::fs::metadata(spool.join(&shipped.file)).is_ok_and(|m| m.len() == shipped.offset);
    let mut files: Vec<String> = std::fs::read_dir(spool)?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|name| is_log_file(name))
        .collect();
    files.sort_by_key(|name| LogPosition { file: name.clone(), offset: 0 });
    let here = LogPosition { file: shipped.file.clone(), offset: u64::MAX };
    match files.into_iter().find(|name| LogPosition { file: name.clone(), offset: 0 } > here) {
        Some(next) if complete => read(&next, 0),
        _ => Ok(None),
    }
}

async fn segment(
    work: &mut Work,
    (clock, compared): (&RunClock, &Compared),
    file: &str,
    first: u64,
    bytes: &[u8],
    covered_up_to: Option<CaptureTime>,
) -> Result<StoreTime, ReplicateError> {
    let skew = compared.skew();
    // The store's time now, as the anchored clock tells it: what lies ahead of it is clamped.
    let store_now = StoreTime(clock.now() - jiff::SignedDuration::from_millis(skew.ahead_ms));
    let header = SegmentHeader {
        version: 1,
        group: work.group.clone(),
        site: work.site.clone(),
        item: work.database.item(),
        epoch: work.epoch,
        timeline: work.timeline.id,
        sequence: work.timeline.next_sequence,
        file: file.to_owned(),
        first,
        last: first + bytes.len() as u64,
        covers: covered_up_to.map(|captured| CaptureStamp::at_commit(captured, &[skew], store_now)),
        content_key: work.sealer.content_key(),
    };
    let written = logs::write(&work.store, &work.signer, &work.sealer, &header, bytes).await?;
    work.timeline.next_sequence += 1;
    if work.timeline.shipped.file != file {
        sweep_spool(&work.spool, &LogPoint { file: file.to_owned(), offset: 0 });
    }
    work.timeline.shipped = LogPoint { file: file.to_owned(), offset: header.last };
    work.timeline.save(&work.state_file)?;
    Ok(written)
}

/// Why a timeline could not be compared with what the store lists.
#[derive(Debug)]
pub enum Reconcile {
    /// The store's unbroken run of segments ends before what was believed durable.
    Gap(String),
    Unknown(ReplicateError),
}

/// Puts a timeline's state right after a crash between a segment and the note about it: the store's listing counts.
pub async fn reconcile(
    store: &Store,
    group: &GroupName,
    site: &SiteName,
    timeline: &mut Timeline,
) -> Result<(), Reconcile> {
    let segments = logs::list_of_site(store, group, &timeline.id, None, site)
        .await
        .map_err(|e| Reconcile::Unknown(e.into()))?;
    let listed = segments.last().map_or(0, |last| last.sequence + 1);
    if listed < timeline.next_sequence {
        return Err(Reconcile::Gap(format!(
            "{} log segments of timeline {} were written, and the store lists an unbroken run of {listed} only",
            timeline.next_sequence, timeline.id
        )));
    }
    if let Some(last) = segments.last() {
        timeline.next_sequence = last.sequence + 1;
        timeline.shipped = LogPoint { file: last.file.clone(), offset: last.last };
    }
    Ok(())
}

/// A client that starts writes its first file anew: what an earlier one wrote behind it would look as if that file were
/// complete.
fn forget_successors(spool: &Path, shipped: &LogPoint) -> std::io::Result<()> {
    let here = LogPosition { file: shipped.file.clone(), offset: u64::MAX };
    for entry in std::fs::read_dir(spool)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_log_file(&name) && (LogPosition { file: name, offset: 0 }) > here {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes spooled files that are durable at the store in full.
fn sweep_spool(spool: &Path, shipped: &LogPoint) {
    let here = LogPosition { file: shipped.file.clone(), offset: 0 };
    let Ok(entries) = std::fs::read_dir(spool) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_log_file(&name) && (LogPosition { file: name, offset: 0 }) < here {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn is_log_file(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}
