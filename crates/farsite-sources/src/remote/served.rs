//! What the serving end holds and does: calls come in, answers go out, and what they leave is held by their numbers until it is
//! released.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use farsite_model::clock::Clock;
use farsite_model::content::ReadAt;
use farsite_model::policy::Item;
use farsite_model::{ItemId, content::TreeEntry};
use farsite_openstack::SiteCloud;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use super::messages::{Answered, Call, Captured, ContentIs, Extents, Lent, Part, SourceRef, TrackingIs};
use super::state::Folders;
use super::{ANSWER_BYTES, LONGEST_ANSWER, READS, frames};
use crate::tracking::ChangeTracking;
use crate::tree::{self, LocalTree, TreeFiles};
use crate::{CaptureContext, Content, Source, SourceError};

/// Extents that are told at once.
const EXTENTS: usize = 4096;
/// Reads of the disk that go on at once.
const READERS: usize = 8;

pub(super) struct Served {
    pub(super) items: BTreeMap<ItemId, Item>,
    pub(super) cloud: Arc<SiteCloud>,
    pub(super) owner: String,
    pub(super) folders: Folders,
    pub(super) outbox: mpsc::Sender<Vec<u8>>,
    state: Mutex<State>,
    readers: Semaphore,
    /// Calls, and what is being let go: the process does not end before them.
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    under_way: BTreeMap<u64, AbortHandle>,
    things: BTreeMap<(u64, Part), Thing>,
    is_over: bool,
}

#[derive(Clone)]
enum Thing {
    Source(Arc<dyn Source>),
    Volume(Arc<dyn ReadAt>),
    Files(Arc<dyn TreeFiles>),
    Tracking(Arc<dyn ChangeTracking>),
    Guard(#[allow(dead_code, reason = "it is held for what its end does")] Arc<dyn Send + Sync>),
}

/// An answer, and what is held from now on.
struct Done {
    answer: Vec<u8>,
    things: Vec<(Part, Thing)>,
}

impl Done {
    fn of(answer: &impl Serialize) -> Result<Self, SourceError> {
        let answer = serde_json::to_vec(answer).map_err(|error| SourceError::new("answering", error))?;
        if answer.len() > LONGEST_ANSWER {
            let why = format!("a list of {} bytes is longer than {LONGEST_ANSWER}", answer.len());
            return Err(SourceError::new("answering", why)
                .hint("make several entries of this one, or have its own host's agent replicate it"));
        }
        Ok(Self { answer, things: Vec::new() })
    }
}

/// The coordinator's clock as it stood when it asked, carried on by this host's ticks: it is behind by what the question took to
/// get here, and the wall clock of this host is no part of it.
struct Lended {
    told: Timestamp,
    heard: Instant,
}

impl Clock for Lended {
    fn now(&self) -> Timestamp {
        self.told + SignedDuration::try_from(self.heard.elapsed()).unwrap_or_default()
    }
}

impl Served {
    pub(super) fn new(
        items: Vec<Item>,
        cloud: Arc<SiteCloud>,
        owner: String,
        folders: Folders,
        outbox: mpsc::Sender<Vec<u8>>,
    ) -> Self {
        let items = items.into_iter().map(|item| (item.id(), item)).collect();
        let (state, readers) = (Mutex::default(), Semaphore::new(READERS));
        Self { items, cloud, owner, folders, outbox, state, readers, tasks: TaskTracker::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    pub(super) fn begin(self: &Arc<Self>, id: u64, call: Call) {
        let (served, heard) = (self.clone(), Instant::now());
        // Under the lock, so that it does not end before it is known to have begun.
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        let task = self.tasks.spawn(async move {
            let (frames, things) = match served.work(id, call, heard).await {
                Ok(Done { answer, things }) => (answered(id, &answer), things),
                Err(error) => {
                    let failed = Answered::Failed { id, failure: error.into() };
                    (vec![frames::encode(&failed, &[])], Vec::new())
                }
            };
            {
                let mut state = served.lock();
                if state.under_way.remove(&id).is_none() || state.is_over {
                    drop(state);
                    return served.let_go(things);
                }
                state.things.extend(things.into_iter().map(|(part, thing)| ((id, part), thing)));
            }
            for frame in frames {
                match frame {
                    Ok(frame) => drop(served.outbox.send(frame).await),
                    Err(error) => tracing::error!("an answer could not be sent: {error}"),
                }
            }
        });
        state.under_way.insert(id, task.abort_handle());
    }

    /// What is closed may delete snapshots and wait for commands.
    fn let_go(&self, things: impl Send + 'static) {
        self.tasks.spawn_blocking(move || drop(things));
    }

    pub(super) fn release(&self, id: u64, part: Option<Part>) {
        let mut state = self.lock();
        if part.is_none()
            && let Some(task) = state.under_way.remove(&id)
        {
            task.abort();
        }
        let parts = [Part::Content, Part::Tracking, Part::Guard, Part::Source];
        let released: Vec<Thing> = parts
            .into_iter()
            .filter(|each| part.is_none_or(|only| only == *each))
            .filter_map(|each| state.things.remove(&(id, each)))
            .collect();
        drop(state);
        if !released.is_empty() {
            self.let_go(released);
        }
    }

    /// Gives everything up and waits until all of it is let go, also what was released before: that may take a while.
    pub(super) async fn end(&self) {
        let things = {
            let mut state = self.lock();
            state.is_over = true;
            for task in std::mem::take(&mut state.under_way).into_values() {
                task.abort();
            }
            std::mem::take(&mut state.things)
        };
        self.let_go(things);
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn thing(&self, id: u64, part: Part) -> Result<Thing, SourceError> {
        let found = self.lock().things.get(&(id, part)).cloned();
        found.ok_or_else(|| SourceError::new("reading", format!("capture {id} is not held here any more")))
    }

    fn source(&self, source: &SourceRef) -> Result<Arc<dyn Source>, SourceError> {
        let key = (source.id, Part::Source);
        if let Some(Thing::Source(source)) = self.lock().things.get(&key) {
            return Ok(source.clone());
        }
        let entry = source.entry.as_ref().and_then(|entry| self.items.get(entry)).ok_or_else(|| {
            SourceError::new("reading", format!("source {} is not held here any more", source.id))
        })?;
        let made: Arc<dyn Source> = Arc::from(crate::source(entry, &self.cloud)?);
        self.lock().things.insert(key, Thing::Source(made.clone()));
        Ok(made)
    }

    fn tracking(&self, of: u64) -> Result<Arc<dyn ChangeTracking>, SourceError> {
        match self.thing(of, Part::Tracking)? {
            Thing::Tracking(tracking) => Ok(tracking),
            _ => Err(SourceError::new("reading", "it has no change tracking")),
        }
    }

    fn context(&self, lent: &Lent, heard: Instant) -> CaptureContext {
        CaptureContext {
            clock: Arc::new(Lended { told: lent.now, heard }),
            scratch: self.folders.scratch.clone(),
            timeout: lent.timeout,
            frozen: lent.frozen,
            kept: self.folders.kept.clone(),
            owner: self.owner.clone(),
        }
    }

    async fn work(&self, id: u64, call: Call, heard: Instant) -> Result<Done, SourceError> {
        match call {
            Call::Check { source } => Done::of(&self.source(&source)?.check().await),
            Call::Items { source } => Done::of(&self.source(&source)?.items().await?),
            Call::Lost { source, gone } => Done::of(&self.source(&source)?.lost(&gone).await?),
            Call::Prepare { source } => Done::of(&self.source(&source)?.prepare().await),
            Call::Instant { source, context } => {
                let context = self.context(&context, heard);
                let instant = self.source(&source)?.instant(&context).await?;
                let done = Done::of(&instant.is_some())?;
                let things = instant.map(|source| (Part::Source, Thing::Source(Arc::from(source))));
                Ok(Done { things: things.into_iter().collect(), ..done })
            }
            Call::Capture { source, item, context } => {
                let context = self.context(&context, heard);
                captured(self.source(&source)?.capture(&item, &context).await?)
            }
            Call::Kept { source, context } => {
                Done::of(&self.source(&source)?.kept(&self.context(&context, heard)).await?)
            }
            Call::Forget { source, item, context } => {
                self.source(&source)?.forget(&item, &self.context(&context, heard)).await;
                Done::of(&())
            }
            Call::Read { of, file, offset, length } => {
                if length > super::READ_BYTES {
                    return Err(SourceError::new("reading", format!("{length} bytes are too many at once")));
                }
                let thing = self.thing(of, Part::Content)?;
                let _turn = self.readers.acquire().await;
                let answer = blocking("reading", move || bytes(&thing, file, offset, length)).await?;
                Ok(Done { answer, things: Vec::new() })
            }
            Call::Extents { of, offset } => match self.thing(of, Part::Content)? {
                Thing::Volume(volume) => {
                    Done::of(&blocking("looking for holes", move || extents(&*volume, offset)).await?)
                }
                _ => Err(SourceError::new("reading", "only a volume has holes")),
            },
            Call::Entries { of } => match self.thing(of, Part::Content)? {
                Thing::Files(files) => {
                    let entries: Vec<TreeEntry> = blocking("listing files", move || files.entries()).await?;
                    Done::of(&entries)
                }
                _ => Err(SourceError::new("reading", "a volume has no files")),
            },
            Call::ChangedSince { of, token } => {
                let tracking = self.tracking(of)?;
                let told =
                    blocking("asking what has changed", move || tracking.changed_since(&token)).await?;
                let told: Option<Vec<(u64, u64)>> =
                    told.map(|ranges| ranges.into_iter().map(|Range { start, end }| (start, end)).collect());
                Done::of(&told)
            }
            Call::Version { of, token } => {
                let tracking = self.tracking(of)?;
                let found = blocking("opening a version", move || Ok(tracking.version(&token))).await?;
                let done = Done::of(&found.as_ref().map(|version| version.size_bytes()))?;
                let things = found.map(|version| (Part::Content, Thing::Volume(version)));
                Ok(Done { things: things.into_iter().collect(), ..done })
            }
            Call::Keep { of } => {
                let tracking = self.tracking(of)?;
                Done::of(&blocking("keeping a version", move || tracking.keep()).await?)
            }
            Call::ForgetOthers { of, tokens } => {
                let tracking = self.tracking(of)?;
                blocking("letting go of versions", move || {
                    tracking.forget_others(&tokens);
                    Ok(())
                })
                .await?;
                Done::of(&())
            }
        }
        .inspect_err(|error| tracing::debug!(id, "{error}"))
    }
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, SourceError> {
    crate::volume::blocking(move || work().map_err(|error| SourceError::new(what, error))).await
}

/// A capture, taken apart into what is told of it and what is held.
fn captured(capture: crate::Capture) -> Result<Done, SourceError> {
    let crate::Capture {
        item,
        kind,
        captured,
        consistency,
        content,
        still,
        ancestor,
        details,
        tracking,
        guard,
    } = capture;
    let (content, held) = match content {
        Content::Volume(volume) => {
            (ContentIs::Volume { size_bytes: volume.size_bytes() }, Thing::Volume(volume))
        }
        Content::Tree { root, paths } => {
            (ContentIs::Tree, Thing::Files(Arc::new(LocalTree::new(&root, paths))))
        }
        Content::FarTree(files) => (ContentIs::Tree, Thing::Files(files)),
    };
    let mut things = vec![(Part::Content, held)];
    let tracking = tracking.map(|tracking| {
        let is = TrackingIs {
            kind: tracking.kind().to_owned(),
            keeps_versions: tracking.keeps_versions(),
            token: tracking.token().map(str::to_owned),
        };
        things.push((Part::Tracking, Thing::Tracking(Arc::from(tracking))));
        is
    });
    if let Some(guard) = guard {
        things.push((Part::Guard, Thing::Guard(Arc::from(guard))));
    }
    let told =
        Captured { item, kind, at: captured, consistency, content, still, ancestor, details, tracking };
    Ok(Done { things, ..Done::of(&told)? })
}

fn bytes(of: &Thing, file: Option<usize>, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    match (of, file) {
        (Thing::Volume(volume), None) => volume.read_exact_at(&mut bytes, offset)?,
        (Thing::Files(files), Some(file)) => {
            files.read(&mut [tree::Part { file, offset, buffer: &mut bytes }])?;
        }
        _ => return Err(io::Error::other("a volume has no files, and a tree is read file by file")),
    }
    Ok(bytes)
}

fn extents(volume: &dyn ReadAt, offset: u64) -> io::Result<Extents> {
    let mut found = Extents { ranges: Vec::new(), until: offset };
    while found.ranges.len() < EXTENTS {
        let Some(range) = volume.next_data(found.until)? else {
            found.until = volume.size_bytes().max(offset + 1);
            break;
        };
        found.ranges.push((range.start, range.end));
        found.until = range.end;
    }
    Ok(found)
}

/// An answer in as many frames as it takes.
fn answered(id: u64, answer: &[u8]) -> Vec<io::Result<Vec<u8>>> {
    let mut frames = Vec::new();
    let mut rest = answer;
    loop {
        let (part, after) = rest.split_at(rest.len().min(ANSWER_BYTES));
        frames.push(frames::encode(&Answered::Answer { id, more: !after.is_empty() }, part));
        if after.is_empty() {
            return frames;
        }
        rest = after;
    }
}

const _: () = assert!(READERS <= READS, "more readers than reads would have nothing to do");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_clock_goes_by_the_coordinators_time_whatever_this_hosts_clock_says() {
        let told = Timestamp::now() - SignedDuration::from_hours(1);
        let clock = Lended { told, heard: Instant::now() };
        std::thread::sleep(std::time::Duration::from_millis(20));
        let later = clock.capture_time().0.duration_since(told);
        assert!((20..2000).contains(&later.as_millis()), "{later:?}");
    }
}
