//! Progress bars on stderr, on a terminal only: elsewhere they would be noise in a log.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use farsite_model::quantity::ByteSize;
use farsite_replicate::run::Observer;
use farsite_store::ingest::RunStats;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One line that says what goes on.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub fn new() -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg} {prefix:.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(150));
        Self { bar }
    }

    pub fn says(&self, words: impl Into<String>) {
        self.bar.set_message(words.into());
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl farsite_store::keep::Progress for Progress {
    fn says(&self, words: &str) {
        Progress::says(self, words);
    }
}

impl Drop for RunProgress {
    fn drop(&mut self) {
        self.progress.clear();
    }
}

/// A run's stages and counters on that line.
pub struct RunProgress {
    progress: Progress,
    whose: String,
}

impl RunProgress {
    /// Of one among several that go on at once only the first words say whose they are.
    pub fn of(several: usize, to: &str) -> Arc<Self> {
        let whose = if several > 1 { format!("to {to}: ") } else { String::new() };
        Arc::new(Self { progress: Progress::new(), whose })
    }
}

impl Observer for RunProgress {
    fn stage(&self, words: &str) {
        self.progress.says(format!("{}{words}", self.whose));
    }

    fn counters(&self, stats: Arc<RunStats>) {
        let (bar, weak) = (self.progress.bar.clone(), Arc::downgrade(&stats));
        drop(stats);
        tokio::spawn(async move {
            // The counters go when the run ends.
            while let Some(stats) = weak.upgrade() {
                let read = ByteSize(stats.read_bytes.load(Ordering::Relaxed));
                let shipped = ByteSize(stats.shipped_bytes.load(Ordering::Relaxed));
                bar.set_prefix(format!("{read} read, {shipped} shipped"));
                drop(stats);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
}
