//! Images of a pool as they are made and written at a standby: a name comes in; the data plane's [`WriteAt`] and [`ReadAt`]
//! go out, and what the pool itself knows: a mark on each image, snapshots, what changed since one of them.
//!
//! What must hold: one client at a time writes an image, which the cluster itself sees to (its exclusive lock); what is
//! flushed is durable; a range that is to be zeros reads as zeros, whatever the pool's settings say of discarding.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farsite_model::content::{ReadAt, WriteAt};
use farsite_model::policy::Rbd;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::child::{Answer, Child, odd};
use super::pool;
use super::trash::Trashed;
use crate::SourceError;

const PROGRAM: &str = include_str!("writer.py");
/// One request for data is no longer.
const READ_BYTES: usize = 4 << 20;
/// One request that makes zeros is no longer: it may have to write them.
const ZEROS_BYTES: u64 = 1 << 30;
/// Data and holes are asked of so much at once.
const TOLD_BYTES: u64 = 16 << 30;
/// The longest line of an answer: the names of a pool's images.
const LINE_BYTES: u64 = 64 << 20;

/// One image of a pool, by its name; there may be none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    pub rbd: Rbd,
    pub name: String,
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {} of {}", self.name, pool(&self.rbd))
    }
}

/// What the pool knows of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Found {
    /// The cluster's own name of it: another image of the same name has another one, and so has a clone.
    pub id: String,
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// What Farsite has written on it.
    pub mark: Option<String>,
    /// Those that have names of their own.
    pub snapshots: Vec<Snapshot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Snapshot {
    pub id: u64,
    pub name: String,
    #[serde(rename = "protected")]
    pub is_protected: bool,
}

/// A connection to a pool. One image is open at a time. All calls block.
pub struct Writer {
    child: Child,
    shown: String,
}

impl Writer {
    pub async fn start(rbd: &Rbd) -> Result<Self, SourceError> {
        let shown = pool(rbd).to_string();
        let arguments: [PathBuf; 4] = pool(rbd).as_arguments();
        let child = Child::start(&format!("connecting to {shown}"), PROGRAM, &arguments).await?;
        Ok(Self { child, shown })
    }

    /// The same for somebody who only looks whether the pool is there: no answer is waited for longer, and with no answer the
    /// connection is of no more use.
    pub async fn start_within(rbd: &Rbd, answer: Duration) -> Result<Self, SourceError> {
        let writer = Self::start(rbd).await?;
        let fail = |error| SourceError::new(format!("connecting to {}", writer.shown), error);
        writer.child.answers_within(answer).map_err(fail)?;
        Ok(writer)
    }

    fn ask<T: DeserializeOwned>(&self, what: &str, request: &Value) -> io::Result<T> {
        self.asked(what, request, &[], |_, ok| Ok(ok))
    }

    /// `None`: it is not there.
    fn ask_of<T: DeserializeOwned>(&self, what: &str, request: &Value) -> io::Result<Option<T>> {
        match self.ask(what, request) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    fn asked<T: DeserializeOwned, R>(
        &self,
        what: &str,
        request: &Value,
        bytes: &[u8],
        good: impl FnOnce(&mut dyn Read, T) -> io::Result<R>,
    ) -> io::Result<R> {
        let line = format!("{request}\n");
        let answer = self.child.ask(&[line.as_bytes(), bytes], |from| {
            let mut line = Vec::new();
            from.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let mut said: Value = serde_json::from_slice(&line).map_err(io::Error::from)?;
            if said.get("gone").is_some() {
                return Err(Answer::Gone);
            }
            if let Some(why) = said.get("error") {
                return Err(Answer::refused(why.as_str().unwrap_or_default()));
            }
            let ok = serde_json::from_value(said["ok"].take()).map_err(io::Error::from)?;
            Ok(good(from, ok)?)
        });
        answer.map_err(|no| {
            let error = no.into_error();
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "",
                _ => "\n  hint: is the cluster well (`ceph -s`), is python3-rbd installed, and may this user write to the pool?",
            };
            io::Error::new(error.kind(), format!("{what} in {}: {error}{hint}", self.shown))
        })
    }

    /// The names of all its images.
    pub fn names(&self) -> io::Result<Vec<String>> {
        self.ask("listing the images", &json!({"do": "names"}))
    }

    /// What may still be written, in bytes, by the pool's quota and by what its OSDs have free. `None`: neither is known.
    pub fn room(&self) -> io::Result<Option<u64>> {
        self.ask("asking what is free", &json!({"do": "room"}))
    }

    /// The cluster's own name.
    pub fn fsid(&self) -> io::Result<String> {
        self.ask("asking for the cluster's name", &json!({"do": "fsid"}))
    }

    /// `None`: there is no image of this name.
    pub fn look(&self, name: &str) -> io::Result<Option<Found>> {
        self.ask_of(&format!("looking at {name}"), &json!({"do": "look", "name": name}))
    }

    /// A new image of zeros: its id.
    pub fn create(&self, name: &str, size_bytes: u64) -> io::Result<String> {
        self.ask(&format!("making {name}"), &json!({"do": "create", "name": name, "size": size_bytes}))
    }

    /// Refused where another image has the name already.
    pub fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        self.ask(&format!("renaming {name} to {to}"), &json!({"do": "rename", "name": name, "to": to}))
    }

    /// With its snapshots.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.ask(&format!("removing {name}"), &json!({"do": "remove", "name": name}))
    }

    /// What is in its trash.
    pub(super) fn trash(&self) -> io::Result<Vec<Trashed>> {
        self.ask("listing the trash", &json!({"do": "trash"}))
    }

    /// Removes an image's snapshots whose names begin so.
    pub(super) fn remove_snapshots(&self, name: &str, prefix: &str) -> io::Result<()> {
        let request = json!({"do": "remove-snapshots", "name": name, "prefix": prefix});
        self.ask(&format!("removing snapshots of {name}"), &request)
    }

    /// The same of an image in the trash, and then, where that is wanted, the image.
    pub(super) fn let_go_of_trash(&self, id: &str, prefix: &str, remove: bool) -> io::Result<()> {
        let request = json!({"do": "let-go", "id": id, "prefix": prefix, "remove": remove});
        self.ask(&format!("letting go of image {id} in the trash"), &request)
    }

    /// Opens images to snapshot all of them. One that has gone is left out.
    pub(super) fn open_all(&self, names: &[String]) -> io::Result<()> {
        self.ask("opening images", &json!({"do": "open-all", "names": names}))
    }

    /// A snapshot of each of them, as close together as can be: the names of those that have gone. Where one fails, the error
    /// is its.
    pub(super) fn snapshot_all(&self, snapshot: &str) -> io::Result<Vec<String>> {
        self.ask("making snapshots", &json!({"do": "snapshot-all", "snapshot": snapshot}))
    }

    /// Asks whoever writes to an image to let go of it, for so long.
    pub fn want(&self, name: &str, time: Duration) -> io::Result<()> {
        let request = json!({"do": "want", "name": name, "seconds": time.as_secs_f64()});
        self.ask(&format!("asking for {name}"), &request)
    }

    /// Opens an image to be read and written by nobody else; `None` when another client has it and does not let go in time.
    pub fn open(self: &Arc<Self>, name: &str, patience: Duration) -> io::Result<Option<OpenImage>> {
        self.open_to_write(name, patience, false)
    }

    /// The same for whoever has the right to it: a client that does not let go in time is shut out by the cluster, so that
    /// nothing it still has under way can reach the image.
    pub fn take(self: &Arc<Self>, name: &str, patience: Duration) -> io::Result<Option<OpenImage>> {
        self.open_to_write(name, patience, true)
    }

    fn open_to_write(
        self: &Arc<Self>,
        name: &str,
        patience: Duration,
        fence: bool,
    ) -> io::Result<Option<OpenImage>> {
        let seconds = patience.as_secs_f64();
        let request = json!({"do": "open", "name": name, "write": true, "seconds": seconds, "fence": fence});
        let size: Value = self.ask(&format!("opening {name}"), &request)?;
        Ok(size.as_u64().map(|size_bytes| OpenImage::new(self.clone(), name, size_bytes)))
    }

    /// Opens an image to be read as it is now.
    pub fn open_to_read(self: &Arc<Self>, name: &str) -> io::Result<OpenImage> {
        let request = json!({"do": "open", "name": name, "write": false, "seconds": 0, "fence": false});
        let size_bytes = self.ask(&format!("opening {name}"), &request)?;
        Ok(OpenImage::new(self.clone(), name, size_bytes))
    }
}

/// Its pool.
impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = self.ask::<()>("ending", &json!({"do": "end"})) {
            tracing::debug!("{error}");
        }
    }
}

/// The image that a connection has open. Closed when this is dropped, or by name.
pub struct OpenImage {
    writer: Arc<Writer>,
    name: String,
    size_bytes: u64,
    /// A range, and the data in it.
    told: Mutex<(Range<u64>, Vec<Range<u64>>)>,
}

impl OpenImage {
    fn new(writer: Arc<Writer>, name: &str, size_bytes: u64) -> Self {
        Self { writer, name: name.to_owned(), size_bytes, told: Mutex::new((0..0, Vec::new())) }
    }

    fn ask<T: DeserializeOwned>(&self, doing: &str, request: &Value) -> io::Result<T> {
        self.writer.ask(&format!("{doing} {}", self.name), request)
    }

    /// Written with the image itself: it goes where that goes, and a clone's copy of it names another image.
    pub fn mark(&self, text: &str) -> io::Result<()> {
        self.ask("marking", &json!({"do": "mark", "text": text}))
    }

    /// Whether somebody asks for it.
    pub fn is_wanted(&self) -> io::Result<bool> {
        self.ask("looking who wants", &json!({"do": "wanted"}))
    }

    /// Nobody asks for it any more.
    pub fn forget_wanted(&self) -> io::Result<()> {
        self.ask("taking", &json!({"do": "unwanted"}))
    }

    /// What is new of it reads as zeros.
    pub fn resize(&mut self, size_bytes: u64) -> io::Result<()> {
        if size_bytes != self.size_bytes {
            self.ask::<()>("resizing", &json!({"do": "resize", "size": size_bytes}))?;
            self.is_now(size_bytes);
        }
        Ok(())
    }

    /// All that was written is durable.
    pub fn flush(&self) -> io::Result<()> {
        self.ask("writing", &json!({"do": "flush"}))
    }

    /// A snapshot of what was written: its id.
    pub fn snapshot(&self, snapshot: &str) -> io::Result<u64> {
        self.ask("making a snapshot of", &json!({"do": "snapshot", "snapshot": snapshot}))
    }

    pub fn protect(&self, snapshot: &str) -> io::Result<()> {
        self.ask("protecting a snapshot of", &json!({"do": "protect", "snapshot": snapshot}))
    }

    pub fn remove_snapshot(&self, snapshot: &str) -> io::Result<()> {
        self.ask("removing a snapshot of", &json!({"do": "remove-snapshot", "snapshot": snapshot}))
    }

    /// Whether anything was written since the snapshot, as the cluster itself knows it.
    pub fn has_changed_since(&self, snapshot: &str) -> io::Result<bool> {
        self.ask("comparing", &json!({"do": "changed", "snapshot": snapshot}))
    }

    /// It is what it was at the snapshot, its size too.
    pub fn roll_back(&mut self, snapshot: &str, size_bytes: u64) -> io::Result<()> {
        self.ask::<()>("rolling back", &json!({"do": "roll-back", "snapshot": snapshot}))?;
        self.is_now(size_bytes);
        Ok(())
    }

    fn is_now(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
        *self.told.get_mut().expect("no holder of this lock panics") = (0..0, Vec::new());
    }
}

impl Drop for OpenImage {
    fn drop(&mut self) {
        if let Err(error) = self.ask::<()>("closing", &json!({"do": "close"})) {
            tracing::warn!("{error}");
        }
    }
}

impl ReadAt for OpenImage {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let inside = offset.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.size_bytes);
        if !inside {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "past the end of the image"));
        }
        let (mut at, what) = (offset, format!("reading {}", self.name));
        for piece in buffer.chunks_mut(READ_BYTES) {
            let request = json!({"do": "read", "offset": at, "length": piece.len()});
            at += piece.len() as u64;
            self.writer.asked(&what, &request, &[], |from, length: usize| {
                if length != piece.len() {
                    return Err(odd("fewer bytes than were asked for"));
                }
                from.read_exact(piece)
            })?;
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut told = self.told.lock().expect("no holder of this lock panics");
        let mut at = offset;
        while at < self.size_bytes {
            if !told.0.contains(&at) {
                let range = at..self.size_bytes.min(at.saturating_add(TOLD_BYTES));
                let request = json!({"do": "data", "offset": range.start, "length": range.end - range.start});
                let data: Vec<(u64, u64)> = self.ask("looking through", &request)?;
                *told = (range, data.into_iter().map(|(start, end)| start..end).collect());
            }
            let first = told.1.partition_point(|data| data.end <= at);
            if let Some(data) = told.1.get(first) {
                return Ok(Some(at.max(data.start)..data.end.min(self.size_bytes)));
            }
            at = told.0.end;
        }
        Ok(None)
    }
}

impl WriteAt for OpenImage {
    /// That one could not be written may be said by a later call only, at the latest by the last.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let request = json!({"do": "write", "offset": offset, "length": bytes.len()});
        self.writer.asked(&format!("writing {}", self.name), &request, bytes, |_, ()| Ok(()))
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let length = ZEROS_BYTES.min(range.end - offset);
            let request = json!({"do": "zero", "offset": offset, "length": length});
            self.ask::<()>("writing zeros to", &request)?;
            offset += length;
        }
        Ok(())
    }

    fn finish(&self, size_bytes: u64) -> io::Result<()> {
        if size_bytes != self.size_bytes {
            return Err(odd("it has another size than what was written to it"));
        }
        self.flush()
    }
}
