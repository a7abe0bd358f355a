//! A process of QEMU that has images open: sockets come in; the process that has one image among its nodes goes out, with
//! what it knows of that image. What must hold: its monitor and its NBD server are shared by all captures of this process
//! of ours, for each serves one client or runs once; a server that others use is never stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use farsite_model::policy::Qmp;
use serde_json::{Value, json};

use super::qmp::{ANSWER, Monitor, NotDone};
use super::scratch::Scratch;
use crate::SourceError;

/// How often something that ends by itself is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// One process behind its monitor.
pub(crate) struct Process {
    pub(super) socket: PathBuf,
    monitor: Mutex<Monitor>,
    server: Mutex<Weak<NbdServer>>,
    /// Nodes of which a capture is read: QEMU makes one backup of a node at a time.
    busy: Mutex<BTreeSet<String>>,
    free: Condvar,
}

/// An image as its process has it open.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) is_overlay: bool,
    pub(super) is_encrypted: bool,
    /// Names of its bitmaps, and whether they record every write and are kept when it is closed.
    pub(super) bitmaps: Vec<(String, bool)>,
}

/// Where an image was looked for.
pub(super) enum Found {
    Open(Arc<Process>, Node),
    /// No process that answered has it open; the one that did not answer may.
    Nowhere(Option<SourceError>),
}

/// Looks for the process that has an image open for writing.
pub(super) fn find(qmp: &Qmp, image: &Path) -> Found {
    let mut silent = None;
    for socket in sockets(&qmp.socket) {
        match Process::with(&socket, image) {
            Ok(Some((process, node))) => return Found::Open(process, node),
            Ok(None) => {}
            Err(error) => {
                let error = SourceError::new(
                    format!("looking for {} in the process at {}", image.display(), socket.display()),
                    error,
                )
                .hint("give each process a QMP monitor of its own for this agent; libvirt's and other tools' serve them alone");
                silent.get_or_insert(error);
            }
        }
    }
    Found::Nowhere(silent)
}

fn sockets(place: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(place) else { return vec![place.to_owned()] };
    let is_socket = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_socket());
    let mut sockets: Vec<PathBuf> = entries.flatten().filter(is_socket).map(|entry| entry.path()).collect();
    sockets.sort();
    sockets
}

impl Process {
    fn with(socket: &Path, image: &Path) -> io::Result<Option<(Arc<Self>, Node)>> {
        let Some(process) = Self::at(socket)? else { return Ok(None) };
        let node = process.node_of(image)?;
        Ok(node.map(|node| (process, node)))
    }

    /// The process at a socket; `None` when nobody listens there.
    fn at(socket: &Path) -> io::Result<Option<Arc<Self>>> {
        static THERE: Mutex<BTreeMap<PathBuf, Weak<Process>>> = Mutex::new(BTreeMap::new());
        let mut there = THERE.lock().expect("no holder of this lock panics");
        there.retain(|_, process| process.strong_count() > 0);
        if let Some(process) = there.get(socket).and_then(Weak::upgrade)
            && !process.lock().is_broken()
        {
            return Ok(Some(process));
        }
        let monitor = match Monitor::connect(socket) {
            Ok(monitor) => monitor,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let process = Arc::new(Self {
            socket: socket.to_owned(),
            monitor: Mutex::new(monitor),
            server: Mutex::default(),
            busy: Mutex::default(),
            free: Condvar::new(),
        });
        there.insert(socket.to_owned(), Arc::downgrade(&process));
        Ok(Some(process))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Monitor> {
        self.monitor.lock().expect("no holder of this lock panics")
    }

    pub(super) fn execute(&self, command: &str, arguments: &Value) -> Result<Value, NotDone> {
        self.lock().execute(command, arguments)
    }

    pub(super) fn ask(&self, command: &str, arguments: &Value) -> io::Result<Value> {
        self.execute(command, arguments).map_err(NotDone::into_error)
    }

    fn list(&self, command: &str, arguments: &Value) -> io::Result<Vec<Value>> {
        match self.ask(command, arguments)? {
            Value::Array(list) => Ok(list),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "its QMP monitor: no list where one is due")),
        }
    }

    fn nodes(&self) -> io::Result<Vec<Value>> {
        self.list("query-named-block-nodes", &json!({ "flat": true }))
    }

    /// The node that writes to an image.
    fn node_of(&self, image: &Path) -> io::Result<Option<Node>> {
        let Ok(wanted) = fs::metadata(image) else { return Ok(None) };
        let is_it = |node: &&Value| {
            let path = filename(node["image"]["filename"].as_str().unwrap_or_default());
            let there = path.and_then(|path| fs::metadata(path).ok());
            node["drv"] == "qcow2"
                && node["ro"] == false
                && there.is_some_and(|there| (there.dev(), there.ino()) == (wanted.dev(), wanted.ino()))
        };
        Ok(self.nodes()?.iter().find(is_it).and_then(Node::of))
    }

    /// The node's bitmaps as they are now.
    pub(super) fn bitmaps(&self, node: &str) -> io::Result<Vec<(String, bool)>> {
        let nodes = self.nodes()?;
        let node = nodes.iter().find(|there| there["node-name"] == node);
        Ok(node.and_then(Node::of).map(|node| node.bitmaps).unwrap_or_default())
    }

    /// An answer of the process that its work goes on, and that nothing on its scratch has failed up to now.
    pub(super) fn vouch(&self, job: &str, scratch: &str) -> io::Result<()> {
        let mut monitor = self.lock();
        let jobs = monitor.execute("query-jobs", &json!({})).map_err(NotDone::into_error)?;
        if let Some(why) = monitor.failure(scratch) {
            return Err(io::Error::other(format!(
                "what its guest overwrote while it was read could not be kept ({why}); the guest goes on\n  hint: see that `qmp.scratch` has room, raise `qmp.scratch-size`, or capture when less is written"
            )));
        }
        let goes_on = |there: &Value| {
            there["id"] == job
                && !matches!(there["status"].as_str(), Some("aborting" | "concluded" | "null") | None)
        };
        if !jobs.as_array().is_some_and(|jobs| jobs.iter().any(goes_on)) {
            return Err(io::Error::other("the backup job that holds its instant was ended by somebody else"));
        }
        Ok(())
    }

    /// Takes down every export, job and node whose name begins so, whoever set it up.
    pub(super) fn sweep(&self, prefix: &str) -> io::Result<()> {
        let ours = |list: Vec<Value>, key: &str| -> Vec<String> {
            let names = list.iter().filter_map(|one| one[key].as_str());
            names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
        };
        let until = Instant::now() + ANSWER;
        loop {
            let exports = ours(self.list("query-block-exports", &json!({}))?, "id");
            for id in &exports {
                self.tell("block-export-del", &json!({ "id": id, "mode": "hard" }))?;
            }
            let jobs = ours(self.list("query-jobs", &json!({}))?, "id");
            for id in &jobs {
                self.tell("job-cancel", &json!({ "id": id }))?;
            }
            if exports.is_empty() && jobs.is_empty() {
                let nodes = ours(self.nodes()?, "node-name");
                if nodes.is_empty() {
                    self.lock().forget_failures(prefix);
                    return Ok(());
                }
                // Those that others stand on are refused until these are gone.
                for node in &nodes {
                    self.tell("blockdev-del", &json!({ "node-name": node }))?;
                }
            }
            if Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not come to an end"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// A command that may be refused because it is done already.
    fn tell(&self, command: &str, arguments: &Value) -> io::Result<()> {
        match self.execute(command, arguments) {
            Ok(_) | Err(NotDone::Refused(_)) => Ok(()),
            Err(broken) => Err(broken.into_error()),
        }
    }

    /// Waits until no other capture reads of a node.
    pub(super) fn reserve(self: &Arc<Self>, node: &str, limit: Duration) -> Option<Reserved> {
        let until = Instant::now() + limit;
        let mut busy = self.busy.lock().expect("no holder of this lock panics");
        while busy.contains(node) {
            let left = until.checked_duration_since(Instant::now())?;
            busy = self.free.wait_timeout(busy, left).expect("no holder of this lock panics").0;
        }
        busy.insert(node.to_owned());
        Some(Reserved { process: self.clone(), node: node.to_owned() })
    }

    /// Its NBD server: the one that it has, or one that is started and ends with its last user.
    pub(super) fn nbd_server(
        self: &Arc<Self>,
        qmp: &Qmp,
        beside: &Path,
    ) -> Result<Arc<NbdServer>, SourceError> {
        let mut there = self.server.lock().expect("no holder of this lock panics");
        if let Some(server) = there.upgrade() {
            return Ok(server);
        }
        let server = match &qmp.nbd {
            Some(socket) => NbdServer { process: self.clone(), socket: socket.clone(), folder: None },
            None => self.start_server(qmp, beside)?,
        };
        let server = Arc::new(server);
        *there = Arc::downgrade(&server);
        Ok(server)
    }

    fn start_server(self: &Arc<Self>, qmp: &Qmp, beside: &Path) -> Result<NbdServer, SourceError> {
        let what = format!("starting an NBD server in the process at {}", self.socket.display());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = format!("{host} {}", self.socket.display());
        let left = Scratch::left_over("nbd", &name, qmp, beside);
        // Where one listens that a killed process of ours left behind.
        let is_ours = left.iter().any(|folder| UnixStream::connect(folder.join(SOCKET)).is_ok());
        let folder = Scratch::create("nbd", &name, qmp, beside)?;
        let socket = folder.path().join(SOCKET);
        let start = || {
            let addr = json!({ "type": "unix", "data": { "path": socket } });
            self.execute("nbd-server-start", &json!({ "addr": addr }))
        };
        let mut answer = start();
        if is_ours && matches!(answer, Err(NotDone::Refused(_))) {
            answer = self.execute("nbd-server-stop", &json!({})).and_then(|_| start());
        }
        for folder in left {
            let _ = fs::remove_dir_all(folder);
        }
        answer.map_err(|error| {
            SourceError::new(&what, error.into_error()).hint(
                "where it has one already, `qmp.nbd` names its socket; the process must be able to write to the folder `qmp.scratch`",
            )
        })?;
        Ok(NbdServer { process: self.clone(), socket, folder: Some(folder) })
    }
}

const SOCKET: &str = "n";

impl Node {
    fn of(node: &Value) -> Option<Self> {
        let image = &node["image"];
        let flag = |bitmap: &Value, name: &str| bitmap[name].as_bool().unwrap_or(false);
        let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten();
        let bitmaps = bitmaps.filter_map(|bitmap| {
            let is_good =
                flag(bitmap, "recording") && flag(bitmap, "persistent") && !flag(bitmap, "inconsistent");
            Some((bitmap["name"].as_str()?.to_owned(), is_good))
        });
        Some(Self {
            name: node["node-name"].as_str()?.to_owned(),
            size_bytes: image["virtual-size"].as_u64()?,
            is_overlay: image.get("backing-filename").is_some(),
            is_encrypted: flag(image, "encrypted"),
            bitmaps: bitmaps.collect(),
        })
    }
}

/// The file of a node whose name may be told with all its options.
fn filename(text: &str) -> Option<PathBuf> {
    let Some(options) = text.strip_prefix("json:") else { return Some(text.into()) };
    let options: Value = serde_json::from_str(options).ok()?;
    Some(options["file"]["filename"].as_str()?.into())
}

/// The right to capture a node.
pub(super) struct Reserved {
    process: Arc<Process>,
    node: String,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.process.busy.lock().expect("no holder of this lock panics").remove(&self.node);
        self.process.free.notify_all();
    }
}

/// An NBD server within a process.
pub(super) struct NbdServer {
    process: Arc<Process>,
    pub(super) socket: PathBuf,
    /// Of one that was started here.
    folder: Option<Scratch>,
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let there = self.process.server.lock().expect("no holder of this lock panics");
        // Somebody else may have started the next one meanwhile.
        if self.folder.is_some()
            && there.strong_count() == 0
            && let Err(error) = self.process.ask("nbd-server-stop", &json!({}))
        {
            tracing::warn!(
                "the NBD server in the process at {} may stay: {error}",
                self.process.socket.display()
            );
        }
    }
}
