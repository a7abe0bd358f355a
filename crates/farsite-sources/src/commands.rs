//! External programs: a command comes in, its exit status and the end of its output go out. What must hold: none runs
//! longer than it may, none outlives the call that started it or the process (even one that gets SIGKILL), and no
//! message quotes arguments or environments, where a secret could stand.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::SourceError;

/// What is kept of a program's output.
const TAIL_BYTES: usize = 16 << 10;
/// What is kept of an output that is wanted whole: many a program's answer in JSON is longer than a tail.
const WHOLE_BYTES: u64 = 64 << 20;
/// How often a program that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// What a message shows of it.
const SHOWN_LINES: usize = 6;
/// Servers' programs stand here on most systems, and are not in everybody's `PATH`.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/usr/bin"];

/// Finds a program that goes by one of several names.
pub fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        std::env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from)).collect();
    names.iter().find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|p| is_program(p)))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The same, or an error that says what to install.
pub fn require(names: &[&str], package: &str) -> Result<PathBuf, SourceError> {
    find(names).ok_or_else(|| {
        SourceError::new(format!("looking for {}", names[0]), "it is installed nowhere on this host")
            .hint(format!("install it (Debian: `apt install {package}`)"))
    })
}

/// A command that ends with its [`Child`] and with this process: `setpriv --pdeathsig` (util-linux) has the kernel
/// kill it, where it is installed. It has a process group of its own, so that Ctrl-C does not end it behind our back.
pub fn tied(program: &Path) -> Command {
    let mut command = match find(&["setpriv"]) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    // Passwords and option files of whoever started the agent are not meant for these programs.
    command.env_remove("MYSQL_PWD").env_remove("MYSQL_HOST").env_remove("MYSQL_TCP_PORT");
    command.kill_on_drop(true).process_group(0).stdin(Stdio::null());
    command
}

struct Job {
    command: Command,
    runtime: Handle,
    answer: oneshot::Sender<std::io::Result<Child>>,
}

/// Starts a command on a thread that lives as long as the process: the kernel takes the end of the *thread* that
/// started a child for the end of its parent (prctl(2), `PR_SET_PDEATHSIG`), and a runtime's threads come and go.
pub async fn spawn(what: &str, command: Command) -> Result<Child, SourceError> {
    static SPAWNER: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        let run = move || {
            for mut job in queue {
                let _runtime = job.runtime.enter();
                // Nobody waits any more: the child is dropped, which ends it.
                let _ = job.answer.send(job.command.spawn());
            }
        };
        std::thread::Builder::new().name("children".into()).spawn(run).ok().map(|_| jobs)
    });
    let (answer, started) = oneshot::channel();
    let job = Job { command, runtime: Handle::current(), answer };
    let sent = spawner.as_ref().is_some_and(|spawner| spawner.send(job).is_ok());
    let child = if sent { started.await.ok() } else { None };
    match child {
        Some(Ok(child)) => Ok(child),
        Some(Err(error)) => {
            Err(SourceError::new(what, error).hint("is the program installed, and may this user run it?"))
        }
        None => Err(SourceError::new(what, "no thread could be started for it")
            .hint("see `ulimit -u` and the service's TasksMax")),
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    /// The last bytes of its standard output, and of its standard error.
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Its success, or an error that shows the end of what it said.
    pub fn success(self, what: &str) -> Result<Self, SourceError> {
        if self.status.success() {
            return Ok(self);
        }
        Err(SourceError::new(what, format!("it ended with {}{}", self.status, shown(&self.stderr))))
    }
}

/// The end of an output as it stands in a message.
pub fn shown(output: &str) -> String {
    let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    last.iter().flat_map(|line| ["\n  | ", line]).collect()
}

/// Runs a command to its end, however it ends; past `limit` it is killed.
pub async fn run(what: &str, mut command: Command, limit: Duration) -> Result<Finished, SourceError> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(what, command).await?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ended = async { tokio::join!(tail(out), tail(err), child.wait()) };
    match tokio::time::timeout(limit, ended).await {
        Ok((stdout, stderr, status)) => {
            let status = status.map_err(|error| SourceError::new(what, error))?;
            Ok(Finished { status, stdout, stderr })
        }
        Err(_) => Err(timed_out(what, limit)),
    }
}

/// The same on this thread, with all of its standard output up to a limit: for where nothing may be waited for otherwise.
pub fn run_now(what: &str, command: Command, limit: Duration) -> Result<Finished, SourceError> {
    let fail = |error: std::io::Error| SourceError::new(what, error);
    let mut command = command.into_std();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(fail)?;
    let (out, err) = (child.stdout.take().map(all_of), child.stderr.take().map(all_of));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(fail)? {
            break status;
        }
        if begun.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return Err(timed_out(what, limit));
        }
        std::thread::sleep(LOOK);
    };
    let text = |reader: Option<JoinHandle<Vec<u8>>>| {
        let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(Finished { status, stdout: text(out), stderr: text(err) })
}

fn all_of(mut from: impl std::io::Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    use std::io::Read as _;
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let _ = from.by_ref().take(WHOLE_BYTES).read_to_end(&mut kept);
        let _ = std::io::copy(&mut from, &mut std::io::sink());
        kept
    })
}

pub fn timed_out(what: &str, limit: Duration) -> SourceError {
    SourceError::new(what, format!("it took longer than {} s and was ended", limit.as_secs_f64()))
        .hint("look what it waits for (locks, disk, network), then run it again")
}

/// Reads to the end and keeps the last bytes.
pub async fn tail(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut kept: Vec<u8> = Vec::new();
    let mut buffer = vec![0; TAIL_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * TAIL_BYTES {
            kept.drain(..kept.len() - TAIL_BYTES);
        }
    }
    String::from_utf8_lossy(&kept[kept.len().saturating_sub(TAIL_BYTES)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = tied(Path::new("/bin/sh"));
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn the_end_of_what_a_failed_program_said_is_shown() {
        let finished =
            run("trying", sh("echo out; echo first >&2; echo last >&2; exit 3"), Duration::from_secs(10))
                .await
                .unwrap();
        assert_eq!(finished.stdout, "out\n");
        let error = finished.success("trying").unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("| last"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_takes_too_long_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let script = format!("sleep 1; echo alive > {}", mark.display());
        assert!(run("waiting", sh(&script), Duration::from_millis(100)).await.is_err());
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!mark.exists(), "it went on");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_child_outlives_the_runtime_thread_that_asked_for_it() {
        let mut child = {
            // A blocking section makes the runtime replace this thread.
            let mut command = sh("exec sleep 5");
            command.stdout(Stdio::null());
            tokio::spawn(async move {
                let child = spawn("sleeping", command).await.unwrap();
                tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(50)));
                child
            })
            .await
            .unwrap()
        };
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(child.try_wait().unwrap().is_none(), "it was killed");
    }

    #[tokio::test]
    async fn a_long_output_is_bounded() {
        let finished = run("talking", sh("head -c 1000000 /dev/zero | tr '\\0' x"), Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(finished.stdout.len(), TAIL_BYTES);
    }

    #[test]
    fn a_missing_program_says_what_to_install() {
        let error = require(&["no-such-program-here"], "some-package").unwrap_err().to_string();
        assert!(error.contains("apt install some-package"), "{error}");
    }
}
