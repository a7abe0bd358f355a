//! An image that is downloaded while it is read. The first read begins the download into a nameless file in the run's scratch
//! folder, which goes with this; each read waits for its bytes. What must hold: the last byte is given out only when the whole
//! image has its recorded length and hash, so nobody reads to the end what is not right; what came twice came the same both
//! times; nothing is written that the folder has no room for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use aws_lc_rs::digest::Context;
use farsite_model::content::ReadAt;
use farsite_model::quantity::ByteSize;
use farsite_openstack::{Receives, SiteCloud};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::digest::Recorded;
use crate::CaptureContext;

/// Left free beside an image, for whatever else is written there.
const SPARE_BYTES: u64 = 64 << 20;
const STOPPED: &str = "its download was stopped";

pub(super) struct Downloaded {
    cloud: Arc<SiteCloud>,
    id: String,
    size_bytes: u64,
    expected: Option<Recorded>,
    scratch: PathBuf,
    limit: Duration,
    runtime: Handle,
    stage: Arc<Mutex<Stage>>,
}

#[derive(Default)]
enum Stage {
    #[default]
    NotBegun,
    Begun {
        spool: Arc<Spool>,
        task: AbortHandle,
    },
    /// Nothing is downloaded any more.
    Ended,
}

/// Ends the download when it is dropped, whoever still reads.
pub(super) struct Ends(Arc<Mutex<Stage>>);

impl Drop for Ends {
    fn drop(&mut self) {
        end(&self.0);
    }
}

fn end(stage: &Mutex<Stage>) {
    let mut stage = stage.lock().expect("no holder of this lock panics");
    if let Stage::Begun { task, .. } = std::mem::replace(&mut *stage, Stage::Ended) {
        task.abort();
    }
}

/// What has come of an image.
struct Spool {
    file: File,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes from the beginning.
    there: u64,
    /// All of it is right, or why it will not be.
    end: Option<Result<(), String>>,
}

impl Spool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn end(&self, end: Result<(), String>) {
        self.lock().end.get_or_insert(end);
        self.moved.notify_all();
    }

    /// Waits for all bytes before `end`; where that is the last, for the judgement of all.
    fn wait(&self, end: u64, is_last: bool) -> io::Result<()> {
        let mut state = self.lock();
        loop {
            match &state.end {
                Some(Ok(())) => return Ok(()),
                Some(Err(why)) => return Err(io::Error::other(why.clone())),
                None if state.there >= end && !is_last => return Ok(()),
                None => state = self.moved.wait(state).expect("no holder of this lock panics"),
            }
        }
    }
}

impl Downloaded {
    pub(super) fn new(
        cloud: Arc<SiteCloud>,
        id: &str,
        size_bytes: u64,
        expected: Option<Recorded>,
        context: &CaptureContext,
    ) -> Self {
        Self {
            cloud,
            id: id.to_owned(),
            size_bytes,
            expected,
            scratch: context.scratch.clone(),
            limit: context.timeout,
            runtime: Handle::current(),
            stage: Arc::default(),
        }
    }

    pub(super) fn ends(&self) -> Ends {
        Ends(self.stage.clone())
    }

    fn spool(&self) -> io::Result<Arc<Spool>> {
        let mut stage = self.stage.lock().expect("no holder of this lock panics");
        match &*stage {
            Stage::NotBegun => {}
            Stage::Begun { spool, .. } => return Ok(spool.clone()),
            Stage::Ended => return Err(io::Error::other(STOPPED)),
        }
        let spool = Arc::new(Spool {
            file: spool_file(&self.scratch, &self.id, self.size_bytes)?,
            state: Mutex::default(),
            moved: Condvar::new(),
        });
        let filling = Filling {
            hash: self.expected.as_ref().map(Recorded::begin),
            expected: self.expected.clone(),
            spool: spool.clone(),
            at: 0,
        };
        let (cloud, id, size_bytes, limit) =
            (self.cloud.clone(), self.id.clone(), self.size_bytes, self.limit);
        let task = self.runtime.spawn(filling.fill(cloud, id, size_bytes, limit)).abort_handle();
        *stage = Stage::Begun { spool: spool.clone(), task };
        Ok(spool)
    }
}

/// A file of this length, all holes and without a name, where there is room for it.
fn spool_file(scratch: &Path, id: &str, size_bytes: u64) -> io::Result<File> {
    let path = scratch.join(format!("image-{id}"));
    let fail = |error: io::Error| {
        io::Error::new(error.kind(), format!("the download's file in {}: {error}", scratch.display()))
    };
    let free = rustix::fs::statvfs(scratch).map_err(|error| fail(error.into()))?;
    let free_bytes = free.f_bavail.saturating_mul(free.f_frsize);
    let needed_bytes = size_bytes.saturating_add(SPARE_BYTES);
    if free_bytes < needed_bytes {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!(
                "an image is downloaded into {} first, where {} are free, and {} are needed\n  hint: make room there, or give \
                 `state:` in farsite.yaml a larger file system",
                scratch.display(),
                ByteSize(free_bytes),
                ByteSize(needed_bytes)
            ),
        ));
    }
    let file =
        File::options().read(true).write(true).create(true).truncate(true).open(&path).map_err(fail)?;
    std::fs::remove_file(&path).map_err(fail)?;
    file.set_len(size_bytes).map_err(fail)?;
    Ok(file)
}

impl Drop for Downloaded {
    fn drop(&mut self) {
        end(&self.stage);
    }
}

impl ReadAt for Downloaded {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        if end > self.size_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let spool = self.spool()?;
        spool.wait(end, end == self.size_bytes)?;
        spool.file.read_exact_at(buffer, offset)
    }
}

/// The writing end of a download.
struct Filling {
    expected: Option<Recorded>,
    hash: Option<Context>,
    spool: Arc<Spool>,
    at: u64,
}

impl Filling {
    async fn fill(mut self, cloud: Arc<SiteCloud>, id: String, size_bytes: u64, limit: Duration) {
        let downloaded = match cloud.client().await {
            Ok(client) => client.download(&id, size_bytes, limit, &mut self).await,
            Err(error) => Err(error),
        };
        let judged = downloaded.map_err(|error| error.to_string()).and_then(|()| {
            let (Some(expected), Some(hash)) = (&self.expected, self.hash.take()) else { return Ok(()) };
            expected.judge(hash).map_err(|why| {
                format!(
                    "its data is not what it should be: {why}\n  hint: the image's store has lost or changed something of it; \
                     what an earlier point holds of it stays as it is"
                )
            })
        });
        self.spool.end(judged);
    }
}

impl Drop for Filling {
    /// Whoever still waits for what does not come any more is told.
    fn drop(&mut self) {
        self.spool.end(Err(STOPPED.to_owned()));
    }
}

impl Receives for Filling {
    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        let fail = |error: io::Error| format!("the download's file cannot be written: {error}");
        let before = self.spool.lock().there;
        let again = (before.saturating_sub(self.at) as usize).min(bytes.len());
        let (known, new) = bytes.split_at(again);
        if !known.is_empty() {
            let mut was = vec![0; known.len()];
            self.spool.file.read_exact_at(&mut was, self.at).map_err(fail)?;
            if was != known {
                return Err("it came twice, and not the same both times".to_owned());
            }
        }
        // What is all zeros is a hole already.
        if new.iter().any(|byte| *byte != 0) {
            self.spool.file.write_all_at(new, self.at + again as u64).map_err(fail)?;
        }
        self.at += bytes.len() as u64;
        if self.at > before {
            self.spool.lock().there = self.at;
            self.spool.moved.notify_all();
        }
        Ok(())
    }

    fn begin_anew(&mut self) -> Result<(), String> {
        self.at = 0;
        self.hash = self.expected.as_ref().map(Recorded::begin);
        Ok(())
    }
}
