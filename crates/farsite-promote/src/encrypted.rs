//! Whether the keys of a point's encrypted volumes are in the point too. Its manifest comes in; sentences go out. What must hold:
//! a volume of which Cinder told that it is encrypted is a problem until the items are in the point that its policy says hold
//! the keys. Whether those hold the right ones is not seen here.

use std::collections::{BTreeMap, BTreeSet};

use farsite_sources::cinder::{ENCRYPTED, ENCRYPTED_BY_CINDER, ENCRYPTION_KEYS};
use farsite_store::manifest::{Manifest, ManifestItem};

use crate::own::Findings;

/// How many volumes a sentence names.
const NAMED: usize = 3;

/// Why nobody could read it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Lack {
    by_cinder: bool,
    /// Of the items that hold the keys, those that the point lacks; none are named at all where it is empty.
    lacks: BTreeSet<String>,
}

fn lack(item: &ManifestItem, there: &BTreeSet<&str>) -> Option<Lack> {
    let by_cinder = item.details.get(ENCRYPTED)? == ENCRYPTED_BY_CINDER;
    let keys = item.details.get(ENCRYPTION_KEYS).map_or("[]", String::as_str);
    // A list that cannot be read names nothing.
    let keys: Vec<String> = serde_json::from_str(keys).unwrap_or_default();
    let lacks: BTreeSet<String> = keys.iter().filter(|key| !there.contains(key.as_str())).cloned().collect();
    (keys.is_empty() || !lacks.is_empty()).then_some(Lack { by_cinder, lacks })
}

/// Problems and notes, a sentence for all volumes that lack the same.
pub(crate) fn look(manifest: &Manifest) -> Findings {
    let there: BTreeSet<&str> = manifest.items.iter().map(|item| item.id.as_str()).collect();
    let mut all: BTreeMap<Lack, Vec<&str>> = BTreeMap::new();
    for item in &manifest.items {
        if let Some(lack) = lack(item, &there) {
            all.entry(lack).or_default().push(item.id.name());
        }
    }
    let mut findings = Findings::default();
    for (lack, volumes) in all {
        let names = named(&volumes);
        if !lack.by_cinder {
            findings.notes.push(format!(
                "{names} begin as encrypted volumes do, the cloud was not there to tell, and no key of theirs is known to be in the point: if Cinder encrypts them, and not their guests, name the items that hold the keys (`encryption-keys`)"
            ));
            continue;
        }
        let lacks: Vec<String> = lack.lacks.into_iter().collect();
        let why = if lacks.is_empty() {
            "its policy names no items that hold the keys\n  hint: name them (`encryption-keys` of the `cinder` entry): the key manager's database and the key that opens it, or the file with `fixed_key`; then take a new point".to_owned()
        } else {
            format!(
                "the point lacks {}, which its policy says hold the keys\n  hint: `farsite status` says why they were not captured",
                lacks.join(" and ")
            )
        };
        findings.problems.push(format!("nobody could read {names}: encrypted by Cinder, and {why}"));
    }
    findings
}

fn named(volumes: &[&str]) -> String {
    let names = volumes[..volumes.len().min(NAMED)].join(", ");
    match volumes.len().saturating_sub(NAMED) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}
