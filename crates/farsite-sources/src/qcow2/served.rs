//! An image served by NBD, as an item's bytes: a closed one by `qemu-nbd`, an open one by its own process. [`ReadAt`] goes
//! out. What must hold: a server of ours never outlives its readers or this process; what is not called zeros is read; no
//! byte is used before its instant is vouched for.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use farsite_model::content::ReadAt;
use farsite_nbd::{Client, Stretch};
use tokio::process::Child;

use crate::guards::RemovedFolder;
use crate::volume::blocking;
use crate::{SourceError, commands};

/// `base:allocation`, and its flag for what reads as zeros.
const ALLOCATION: &str = "base:allocation";
const ZERO: u32 = 2;
/// The longest that one answer of the server may take: a disk that hangs hangs longer.
const ANSWER: Duration = Duration::from_mins(5);
/// Until it listens; it only opens the image before.
const START: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(5);
/// `sun_path` of unix(7) holds 108 bytes, and `qemu-nbd` takes absolute paths only.
const SOCKET_BYTES: usize = 100;

/// What keeps an export at one instant.
pub(super) trait Hold: Send + Sync {
    /// Every byte that was read so far is of that instant.
    fn vouch(&self) -> io::Result<()>;
    /// Nothing is read any more.
    fn end(&self);
}

/// An export and the way to it.
pub(crate) struct Served {
    pub(crate) client: Client,
    hold: Box<dyn Hold>,
}

impl Served {
    /// `bitmaps` are told with it.
    pub(super) fn new(
        what: &str,
        socket: PathBuf,
        export: &str,
        bitmaps: &[String],
        hold: Box<dyn Hold>,
    ) -> Result<Self, SourceError> {
        let contexts = bitmaps.iter().map(|name| context(name)).collect();
        let client = connect(what, &socket, export, contexts)?;
        Ok(Self { client, hold })
    }

    /// Serves a closed image: the one at `path`, which nobody can open for writing meanwhile, or `copy` of it.
    pub(super) async fn closed(
        path: &Path,
        copy: Option<File>,
        bitmaps: &[String],
        scratch: &Path,
    ) -> Result<Self, SourceError> {
        let what = format!("reading {} through qemu-nbd", path.display());
        let folder = socket_folder(scratch)?;
        let socket = folder.path().join("s");
        let log = folder.path().join("log");
        let fail = |error: io::Error| SourceError::new(&what, error);
        let mut command = commands::tied(&commands::require(&["qemu-nbd"], "qemu-utils")?);
        command
            .args(["--read-only", "--persistent", "--shared=0", "--format=qcow2", "--socket"])
            .arg(&socket);
        for bitmap in bitmaps {
            command.arg("--bitmap").arg(bitmap);
        }
        match &copy {
            Some(copy) => command.arg(super::nameless(copy)),
            None => command.arg(path),
        };
        command.stdout(std::process::Stdio::null()).stderr(File::create(&log).map_err(fail)?);
        let mut child = commands::spawn(&what, command).await?;
        let begun = Instant::now();
        // The socket is there a moment before anybody listens at it.
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if let Some(status) = child.try_wait().map_err(fail)? {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let why = format!("it ended with {status}{}", commands::shown(&said));
                return Err(
                    SourceError::new(what, why).hint("has another process opened the image just now?")
                );
            }
            if begun.elapsed() > START {
                return Err(commands::timed_out(&what, START));
            }
            tokio::time::sleep(LOOK).await;
        }
        let server = Server { child: Mutex::new(Some(child)), _folder: folder, _copy: copy };
        let bitmaps = bitmaps.to_vec();
        blocking(move || Self::new(&what, socket, "", &bitmaps, Box::new(server))).await
    }

    /// Ends what holds it. Nothing can be read after this.
    pub(super) fn end(&self) {
        self.hold.end();
    }
}

/// `qemu-nbd`, and what it reads.
struct Server {
    child: Mutex<Option<Child>>,
    _folder: RemovedFolder,
    /// The copy that it reads, which has no name.
    _copy: Option<File>,
}

impl Hold for Server {
    /// Nobody can write to what it reads.
    fn vouch(&self) -> io::Result<()> {
        Ok(())
    }

    fn end(&self) {
        let child = self.child.lock().expect("no holder of this lock panics").take();
        let Some(mut child) = child else { return };
        let _ = child.start_kill();
        let begun = Instant::now();
        while !matches!(child.try_wait(), Ok(Some(_)) | Err(_)) && begun.elapsed() < START {
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// The context in which a bitmap is told.
pub(crate) fn context(bitmap: &str) -> String {
    format!("qemu:dirty-bitmap:{bitmap}")
}

fn connect(
    what: &str,
    socket: &Path,
    export: &str,
    mut contexts: Vec<String>,
) -> Result<Client, SourceError> {
    contexts.push(ALLOCATION.to_owned());
    let contexts: Vec<&str> = contexts.iter().map(String::as_str).collect();
    let begun = Instant::now();
    loop {
        match Client::connect(socket, export, &contexts, ANSWER) {
            Ok(client) => return Ok(client),
            // The socket is there a moment before somebody listens at it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && begun.elapsed() < START => {
                std::thread::sleep(LOOK);
            }
            Err(error) => return Err(SourceError::new(what, error)),
        }
    }
}

/// A folder whose path leaves room for a socket's name.
fn socket_folder(scratch: &Path) -> Result<RemovedFolder, SourceError> {
    let folder = RemovedFolder::create(&std::path::absolute(scratch).unwrap_or_default(), "nbd")?;
    if folder.path().as_os_str().len() < SOCKET_BYTES {
        return Ok(folder);
    }
    RemovedFolder::create(&std::env::temp_dir(), "farsite-nbd")
}

/// The bytes of an export.
pub(crate) struct ServedContent {
    served: Arc<Served>,
    /// Where the last answer about zeros began, and the answer.
    told: Mutex<(u64, Vec<Stretch>)>,
}

impl ServedContent {
    pub(crate) fn new(served: Arc<Served>) -> Self {
        Self { served, told: Mutex::default() }
    }
}

impl ReadAt for ServedContent {
    fn size_bytes(&self) -> u64 {
        self.served.client.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.served.client.read_exact_at(buffer, offset)?;
        // Afterwards: what happens from now on is no matter.
        self.served.hold.vouch()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut told = self.told.lock().expect("no holder of this lock panics");
        let mut at = offset;
        while at < self.size_bytes() {
            let mut end = told.0;
            // An answer says nothing of what lies before it, and readers go back.
            let stretches = if told.0 <= at { told.1.as_slice() } else { &[] };
            for (length, flags) in stretches {
                end += length;
                if end > at {
                    if flags & ZERO == 0 {
                        // The first stretch may begin before what was asked for.
                        return Ok(Some(at..end.min(self.size_bytes())));
                    }
                    at = end;
                }
            }
            if at < self.size_bytes() {
                let stretches = self.served.client.stretches(ALLOCATION, at..self.size_bytes())?;
                self.served.hold.vouch()?;
                *told = (at, stretches);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn tool(program: &str, args: &[&str]) {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[tokio::test]
    async fn data_that_lies_before_the_last_answer_about_zeros_is_asked_for_again() {
        const MIB: u64 = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk");
        let path = image.to_str().unwrap();
        // Larger than one answer tells of.
        tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "3G"]);
        tool("qemu-io", &["-f", "qcow2", "-c", "write 1M 1M", "-c", "write 2560M 1M", path]);
        let served = Served::closed(&image, None, &[], folder.path()).await.unwrap();
        let content = ServedContent::new(Arc::new(served));
        let told = blocking(move || {
            let starts = [2048 * MIB, 0, 2 * MIB, MIB];
            Ok(starts.map(|offset| content.next_data(offset).unwrap().unwrap()))
        });
        let (early, late) = (MIB..2 * MIB, 2560 * MIB..2561 * MIB);
        assert_eq!(told.await.unwrap(), [late.clone(), early.clone(), late, early]);
    }
}
