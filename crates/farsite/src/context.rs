//! What every command shares: the configuration, how to print, whether somebody is there to ask, and the wish to stop.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use farsite_model::config::Config;
use farsite_model::{GroupName, PointId};
use farsite_replicate::pin::ReadPin;
use farsite_store::Store;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::output::Output;

pub struct Context {
    pub config_path: Option<PathBuf>,
    pub yes: bool,
    pub out: Output,
    /// Set by SIGINT and SIGTERM.
    pub cancel: CancellationToken,
    pub pins: Pins,
}

/// What this command reads at a store, kept from collection until it ends, however it ends.
#[derive(Default)]
pub struct Pins(Mutex<Vec<ReadPin>>);

impl Pins {
    pub async fn hold(&self, config: &Config, store: &Store, group: &GroupName, points: &[PointId]) {
        // Under the lock, so that a command that is cut off here has either no pin or one that is ended.
        let mut pins = self.0.lock().await;
        pins.extend(ReadPin::of_host(config, store, group, points).await);
    }
    pub async fn end(&self) {
        for pin in self.0.lock().await.drain(..) {
            pin.end().await;
        }
    }
}

impl Context {
    pub fn config(&self) -> Result<Arc<Config>, Failure> {
        Ok(Arc::new(Config::discover(self.config_path.as_deref())?))
    }

    /// Asks the one question of a dangerous command. Without a terminal and without `--yes` it is refused.
    pub fn confirm(&self, question: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Failure::refused(format!("not confirmed: {question}"))
                .hint("nobody can be asked here; say --yes when it is meant"));
        }
        eprint!("{question} [y/N] ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map_err(Failure::io("reading the answer"))?;
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::refused("not confirmed; nothing was changed")),
        }
    }
}

/// The first SIGINT or SIGTERM asks for a clean end; a second one ends at once.
pub fn watch_signals() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        for last in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if last {
                std::process::exit(i32::from(crate::failure::INTERRUPTED));
            }
            cancelled.cancel();
        }
    });
    token
}

/// This person at this machine, for ledgers and journals.
pub fn who() -> String {
    format!("{}@{}", farsite_promote::driver::user(), rustix::system::uname().nodename().to_string_lossy())
}
