//! The serving end, `farsite serve-sources`: it reads its host's own items for a coordinator, and ends with the line.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use farsite_model::SiteName;
use farsite_openstack::SiteCloud;
use tokio::sync::mpsc;

use super::messages::{Answered, Failure, Hello, Opening, Said};
use super::process::thread;
use super::served::Served;
use super::state::Folders;
use super::{PROTOCOL, frames};
use crate::SourceError;

/// Calls that wait to be begun, and frames that wait to be sent.
const CALLS: usize = 64;
const FRAMES: usize = 8;
/// How long whoever started this may take to say what it wants.
const HELLO_LIMIT: Duration = Duration::from_secs(30);
/// How long what is held may take to be let go.
const END_LIMIT: Duration = Duration::from_secs(20);

/// What the serving host knows of itself.
pub struct ServeOptions {
    /// As it calls itself.
    pub host: String,
    pub site: SiteName,
    pub cloud: Arc<SiteCloud>,
    /// Its own state folder.
    pub state: PathBuf,
}

/// Serves until the other end is gone, or has said nothing for as long as it wants to be waited for, or until `stopped`.
pub async fn serve(
    options: ServeOptions,
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    stopped: impl Future<Output = ()>,
) -> Result<(), SourceError> {
    let heard = Arc::new(Heard { begun: Instant::now(), at_ms: AtomicU64::new(0) });
    let (outbox, queue) = mpsc::channel(FRAMES);
    let (calls, mut said) = mpsc::channel(CALLS);
    let fail = |error: io::Error| SourceError::new("starting to serve", error);
    thread("line-out", move || write(queue, output)).map_err(fail)?;
    thread("line-in", {
        let heard = heard.clone();
        move || read(input, &heard, &calls)
    })
    .map_err(fail)?;
    tokio::pin!(stopped);
    let hello = tokio::select! {
        said = tokio::time::timeout(HELLO_LIMIT, said.recv()) => match said {
            Ok(Some(Ok(Said::Hello(hello)))) => *hello,
            Ok(Some(Err(error))) => return refuse(&outbox, error).await,
            Ok(Some(Ok(_))) | Err(_) => {
                let error = SourceError::new("serving", "whoever started this does not say what it wants")
                    .hint("it is started by a coordinating agent (`hosts:` in its farsite.yaml), not by hand");
                return refuse(&outbox, error).await;
            }
            Ok(None) => return Ok(()),
        },
        () = &mut stopped => return Ok(()),
    };
    if let Err(error) = is_meant(&options, &hello) {
        return refuse(&outbox, error).await;
    }
    let folders = match Folders::open(&options.state, &hello) {
        Ok(folders) => folders,
        Err(error) => {
            let error = SourceError::new(format!("preparing {}", options.state.display()), error)
                .hint("`state:` in that host's farsite.yaml must be a folder that its user may write to");
            return refuse(&outbox, error).await;
        }
    };
    let Hello { items, owner, patience, .. } = hello;
    let served = Arc::new(Served::new(items, options.cloud, owner, folders, outbox.clone()));
    say(&outbox, &Answered::Ready).await;

    let mut tick = tokio::time::interval((patience / 4).max(Duration::from_millis(10)));
    let result = loop {
        tokio::select! {
            said = said.recv() => match said {
                Some(Ok(Said::Ask { id, call })) => served.begin(id, call),
                Some(Ok(Said::Release { id, part })) => served.release(id, part),
                Some(Ok(Said::Alive)) => {}
                Some(Ok(Said::Hello(_))) => break Err(SourceError::new("serving", "greeted twice")),
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            },
            _ = tick.tick() => {
                if heard.silent_for() > patience {
                    let silent = heard.silent_for().as_secs();
                    break Err(SourceError::new("serving", format!("the coordinator has said nothing for {silent} s")));
                }
                // Where frames wait to be sent, they are sign enough.
                if let Ok(alive) = frames::encode(&Answered::Alive, &[]) {
                    let _ = outbox.try_send(alive);
                }
            }
            () = outbox.closed() => break Ok(()),
            () = &mut stopped => break Ok(()),
        }
    };
    if tokio::time::timeout(END_LIMIT, served.end()).await.is_err() {
        tracing::error!(
            "not all that was held could be let go in {} s; the next run removes it",
            END_LIMIT.as_secs()
        );
    }
    result
}

/// When the other end was heard last.
struct Heard {
    begun: Instant,
    /// In milliseconds since then.
    at_ms: AtomicU64,
}

impl Heard {
    fn now(&self) {
        self.at_ms.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
    fn silent_for(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.at_ms.load(Ordering::Relaxed)))
    }
}

/// Whether it is this host that is meant: another one would give other bytes for the same paths.
fn is_meant(options: &ServeOptions, hello: &Hello) -> Result<(), SourceError> {
    if hello.host != options.host {
        return Err(SourceError::new(
            "serving",
            format!("the command reached a host that calls itself {}, and {} was meant", options.host, hello.host),
        )
        .hint("correct `command:` under `hosts:` in the coordinator's farsite.yaml, or `on:` in the policy: `uname -n` tells a host's name"));
    }
    if hello.site != options.site {
        return Err(SourceError::new(
            "serving",
            format!("this host is at site {}, and group {} is at {}", options.site, hello.group, hello.site),
        )
        .hint("correct `site:` in that host's farsite.yaml"));
    }
    let is_plain = !hello.owner.is_empty() && hello.owner.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_plain {
        Ok(())
    } else {
        Err(SourceError::new("serving", "the coordinator's name for itself is odd"))
    }
}

async fn refuse(outbox: &mpsc::Sender<Vec<u8>>, error: SourceError) -> Result<(), SourceError> {
    say(outbox, &Answered::Refused(Failure::from(error.clone()))).await;
    // Time for it to go.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Err(error)
}

async fn say(outbox: &mpsc::Sender<Vec<u8>>, what: &Answered) {
    if let Ok(frame) = frames::encode(what, &[]) {
        let _ = outbox.send(frame).await;
    }
}

fn write(mut queue: mpsc::Receiver<Vec<u8>>, mut output: impl Write) {
    let opening = Opening { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
    let mut begin = frames::MAGIC.to_vec();
    begin.extend(frames::encode(&opening, &[]).unwrap_or_default());
    let mut written = output.write_all(&begin).and_then(|()| output.flush());
    while written.is_ok() {
        let Some(frame) = queue.blocking_recv() else { return };
        written = output.write_all(&frame).and_then(|()| output.flush());
    }
}

fn read(mut input: impl Read, heard: &Heard, calls: &mpsc::Sender<Result<Said, SourceError>>) {
    if let Err(error) = listen(&mut input, heard, calls) {
        let _ = calls.blocking_send(Err(error));
    }
}

fn listen(
    input: &mut impl Read,
    heard: &Heard,
    calls: &mpsc::Sender<Result<Said, SourceError>>,
) -> Result<(), SourceError> {
    let fail = |why: String| SourceError::new("listening to the coordinator", why);
    let mut magic = [0; frames::MAGIC.len()];
    input.read_exact(&mut magic).map_err(|error| fail(error.to_string()))?;
    if magic != frames::MAGIC {
        return Err(fail("it is no coordinating agent".to_owned())
            .hint("this is started by an agent (`hosts:` in its farsite.yaml), not by hand"));
    }
    let mut next = || frames::read(input).map_err(|error| fail(error.to_string()));
    let Some(frame) = next()? else { return Ok(()) };
    let theirs: Opening = serde_json::from_slice(&frame.header).map_err(|error| fail(error.to_string()))?;
    if theirs.protocol != PROTOCOL {
        // It says so itself, with both versions.
        return Err(fail(format!("it speaks protocol {}, and this host {PROTOCOL}", theirs.protocol)));
    }
    while let Some(frame) = next()? {
        heard.now();
        let said = serde_json::from_slice(&frame.header)
            .map_err(|error| fail(format!("its words make no sense: {error}")))?;
        if calls.blocking_send(Ok(said)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
