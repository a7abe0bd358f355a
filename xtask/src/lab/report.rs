//! What a command says while it works: which site, and how long since it began. On stderr; results go to stdout.

use std::time::Instant;

#[derive(Debug)]
pub struct Report {
    site: &'static str,
    begun: Instant,
}

impl Report {
    pub fn new(site: &'static str) -> Self {
        Self { site, begun: Instant::now() }
    }

    pub fn say(&self, what: &str) {
        eprintln!("[{} {:5.1} s] {what}", self.site, self.seconds());
    }

    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}
