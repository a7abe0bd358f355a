//! What is found damaged while an item is read: one line for each object and sentence comes in and goes out. What must
//! hold: an item of millions of blocks in one lost pack does not fill the memory with as many lines.

use std::collections::{BTreeMap, BTreeSet};

use crate::Damage;
use crate::blob::BlobRef;
use crate::pack::object_key;

/// Different sentences that are kept for one object.
const SENTENCES: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Found(BTreeMap<String, BTreeSet<String>>);

impl Found {
    pub(crate) fn extend(&mut self, damage: impl IntoIterator<Item = Damage>) {
        for one in damage {
            let whys = self.0.entry(one.object).or_default();
            if whys.len() < SENTENCES {
                whys.insert(one.why);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<Damage> {
        let lines = |(object, whys): (String, BTreeSet<String>)| {
            whys.into_iter().map(move |why| Damage { object: object.clone(), why }).collect::<Vec<_>>()
        };
        self.0.into_iter().flat_map(lines).collect()
    }
}

/// Damage of the pack that a blob lies in.
pub(crate) fn of(blob: &BlobRef, why: impl Into<String>) -> Damage {
    Damage::new(object_key(&blob.at.pack), why)
}

pub(crate) fn impossible(blob: &BlobRef) -> Damage {
    of(
        blob,
        format!("a block map says that a blob at {} has {} bytes", blob.at.offset, blob.at.sealed_bytes()),
    )
}

pub(crate) fn wrong_hash(blob: &BlobRef) -> Damage {
    of(blob, format!("the blob at {}+{} is not {}", blob.at.offset, blob.at.sealed_bytes(), blob.id))
}
