//! What every command shares: the configuration, how to print, whether somebody is there to ask, and the wish to stop.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use farsite_model::config::Config;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::output::Output;

pub struct Context {
    pub config_path: Option<PathBuf>,
    pub yes: bool,
    pub out: Output,
    /// Set by SIGINT and SIGTERM.
    pub cancel: CancellationToken,
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
