//! Programs that a step runs, tied to whoever waits for them. A command line comes in; a child goes out that is told to end when
//! its driver dies, and when nobody waits for it any more. What must hold: where a driver was killed, what it ran does not go on
//! beside the one that takes over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A program by its path, or where `PATH` has it.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return path.is_file().then(|| path.to_owned());
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// coreutils' `timeout` ends what it runs, with all its children, when its time is over and when it is told to end itself: by the
/// kernel, where setpriv of util-linux is there to ask it to, when the driver dies.
pub(super) fn timeout() -> Command {
    match find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "TERM", "--", "timeout"]);
            command
        }
        None => Command::new("timeout"),
    }
}

struct Job {
    command: Command,
    runtime: Handle,
    answer: oneshot::Sender<io::Result<Child>>,
}

/// Starts it on a thread that lives as long as this process: the kernel takes the end of the *thread* that started a child for the
/// end of its parent (prctl(2), `PR_SET_PDEATHSIG`), and a runtime's threads come and go.
pub(super) async fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        let run = move || {
            for mut job in queue {
                let _runtime = job.runtime.enter();
                if let Err(Ok(child)) = job.answer.send(job.command.spawn()) {
                    drop(Waited::of(&child));
                }
            }
        };
        std::thread::Builder::new().name("steps".into()).spawn(run).ok().map(|_| jobs)
    });
    let (answer, started) = oneshot::channel();
    let job = Job { command, runtime: Handle::current(), answer };
    let no_thread = || io::Error::other("no thread could be started for it (see `ulimit -u`)");
    spawner.as_ref().ok_or_else(no_thread)?.send(job).map_err(|_| no_thread())?;
    started.await.map_err(|_| no_thread())?
}

/// Told to end when this is dropped before it has ended.
pub(super) struct Waited(Option<Pid>);

impl Waited {
    pub(super) fn of(child: &Child) -> Self {
        Self(child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw))
    }
    pub(super) fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Waited {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Nobody has asked for its end yet, so the number is still its own.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}
