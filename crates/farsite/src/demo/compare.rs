//! After the failover: what south has against what north had promised. For each kind of item the true loss is the
//! time from the first promise that was not kept to the disaster: everything promised before it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::acknowledged::{self, Book, Promise};
use super::page::Counter;
use super::writer::sha512;

/// What south has.
pub struct Restored {
    /// Numbers of the heartbeat's rows.
    pub heartbeats: BTreeSet<u64>,
    /// Ids and checksums of the image rows.
    pub images: BTreeMap<String, String>,
    pub glance: PathBuf,
    pub cinder: PathBuf,
    pub keystone: PathBuf,
}

/// The loss of one kind of item.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loss {
    /// `database`, `volumes`, `images`, `files`.
    pub kind: &'static str,
    pub promised: usize,
    pub lost: usize,
    pub true_loss_s: f64,
    /// In what unit, for people.
    #[serde(skip)]
    pub unit: &'static str,
}

/// Everything that the comparison says.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub losses: Vec<Loss>,
    /// What is not merely older, but wrong: torn pages, rows without files, files with other bytes.
    pub faults: Vec<String>,
    /// All volumes stand at one counter: they are of one instant.
    pub volumes_of_one_instant: bool,
}

impl Comparison {
    pub fn worst_s(&self) -> f64 {
        self.losses.iter().map(|loss| loss.true_loss_s).fold(0.0, f64::max)
    }
}

/// Compares; `promises` is the folder of what was acknowledged, until the disaster at `disaster_ms`.
pub fn compare(promises: &Path, restored: &Restored, disaster_ms: u64) -> std::io::Result<Comparison> {
    let mut faults = Vec::new();
    let heartbeats = acknowledged::read(promises, Book::Heartbeat)?;
    let database = loss("database", "rows", &heartbeats, disaster_ms, |promise| {
        restored.heartbeats.contains(&promise.number())
    });
    let newest = restored.heartbeats.last().copied().unwrap_or(0);
    if restored.heartbeats.len() as u64 != newest {
        faults.push(format!("the heartbeat has gaps: {} rows up to {newest}", restored.heartbeats.len()));
    }

    let pages = acknowledged::read(promises, Book::Volumes)?;
    let mut counters = BTreeMap::new();
    for name in pages.iter().map(|promise| promise.what.clone()).collect::<BTreeSet<_>>() {
        match Counter::read(&restored.cinder.join(&name)) {
            Ok(page) => {
                counters.insert(name, page.counter);
            }
            Err(why) => faults.push(format!("{name}: {why}")),
        }
    }
    let volumes = loss("volumes", "pages", &pages, disaster_ms, |promise| {
        counters.get(&promise.what).is_some_and(|counter| promise.number() <= *counter)
    });
    let of_one_instant = counters.values().collect::<BTreeSet<_>>().len() <= 1;

    let promised = acknowledged::read(promises, Book::Images)?;
    let mut files = BTreeMap::new();
    for (id, expected) in &restored.images {
        match std::fs::read(restored.glance.join(id)) {
            Err(error) => faults.push(format!("image {id} has a row and no file: {error}")),
            Ok(bytes) if sha512(&bytes) != *expected => {
                faults.push(format!("image {id} has other bytes than its row says"));
            }
            Ok(_) => {
                files.insert(id.clone(), expected.clone());
            }
        }
    }
    let images = loss("images", "images", &promised, disaster_ms, |promise| {
        files.get(&promise.what) == Some(&promise.value)
    });

    let promised = acknowledged::read(promises, Book::Keys)?;
    let keys = loss("files", "keys", &promised, disaster_ms, |promise| {
        std::fs::read(restored.keystone.join(&promise.what)).is_ok_and(|key| sha512(&key) == promise.value)
    });
    if keys.lost > 0 {
        faults.push(format!("{} of Keystone's keys are missing or have other bytes", keys.lost));
    }
    Ok(Comparison {
        losses: vec![database, volumes, images, keys],
        faults,
        volumes_of_one_instant: of_one_instant,
    })
}

fn loss(
    kind: &'static str,
    unit: &'static str,
    promised: &[Promise],
    disaster_ms: u64,
    kept: impl Fn(&Promise) -> bool,
) -> Loss {
    let lost: Vec<&Promise> = promised.iter().filter(|promise| !kept(promise)).collect();
    let first_ms = lost.iter().map(|promise| promise.at_ms).min();
    let true_loss_s = first_ms.map_or(0.0, |first_ms| disaster_ms.saturating_sub(first_ms) as f64 / 1000.0);
    Loss { kind, promised: promised.len(), lost: lost.len(), true_loss_s, unit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(value: u64, at_ms: u64) -> Promise {
        Promise { what: "heartbeat".into(), value: value.to_string(), at_ms }
    }

    #[test]
    fn true_loss_runs_from_the_first_broken_promise_to_the_disaster() {
        let promised = [promise(1, 1000), promise(2, 1100), promise(3, 1200), promise(4, 1900)];
        let found = loss("database", "rows", &promised, 2000, |p| p.number() <= 2);
        assert_eq!((found.lost, found.true_loss_s), (2, 0.8));
        assert!(loss("database", "rows", &promised, 2000, |_| true).true_loss_s < f64::EPSILON);
    }

    #[test]
    fn a_hole_counts_from_where_it_begins() {
        let promised = [promise(1, 1000), promise(2, 1100), promise(3, 1200)];
        let found = loss("database", "rows", &promised, 1300, |p| p.number() != 2);
        assert_eq!((found.lost, found.true_loss_s), (1, 0.2));
    }
}
