//! An image that a process of QEMU has open, held at one instant and read through that process: before the guest overwrites
//! something the process copies it to a scratch image, which stands on the open one and is exported by NBD. One
//! transaction begins that, adds this capture's bitmap, and copies what the bitmaps of earlier captures tell.
//!
//! What must hold: nothing that goes wrong with the scratch image reaches the guest, and no byte is used that was read after
//! something did; what was set up is taken down, by the next capture where this process could not.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farsite_model::policy::Qmp;
use serde_json::{Value, json};

use super::bitmaps::{self, Bitmaps, Place};
use super::image::{CANARY, GRANULARITY, Image, SECTOR};
use super::process::{NbdServer, Node, Process, Reserved};
use super::qmp::{NotDone, OURS};
use super::scratch::{Scratch, short};
use super::served::{Hold, Served};
use crate::{CaptureContext, SourceError, random};

/// Maps of a scratch image are held in memory, which is taken as they fill: so much of a disk needs one byte.
const MAPPED_BYTES: u64 = 8 << 10;
const MAP_CACHE: std::ops::RangeInclusive<u64> = 1 << 20..=256 << 20;
const REFCOUNT_CACHE: u64 = 4 << 20;

/// What was held, with the bitmaps that tell of it.
pub(super) struct Opened {
    pub(super) served: Served,
    pub(super) tracking: Option<Bitmaps>,
}

/// Holds an open image at the instant of one transaction.
pub(super) fn hold(
    process: &Arc<Process>,
    node: &Node,
    qmp: &Qmp,
    image: &Image,
    prefix: String,
    context: &CaptureContext,
) -> Result<Opened, SourceError> {
    let what = format!("holding {} in the process at {}", image.path.display(), process.socket.display());
    let fail = |error: io::Error| SourceError::new(&what, error);
    if node.is_encrypted {
        return Err(SourceError::new(&what, "it is encrypted, and would be stored as its guest sees it")
            .hint("leave `format:` out, and stop the guest while its file is copied as it is"));
    }
    let reserved = process.reserve(&node.name, image.limit).ok_or_else(|| {
        SourceError::new(&what, "another capture of it has not come to its end")
            .hint("let fewer policies protect the same image")
    })?;
    let names = format!("{OURS}{}-", short(&prefix));
    process.sweep(&names).map_err(fail)?;
    for folder in Scratch::left_over("open", &prefix, qmp, &image.path) {
        let _ = fs::remove_dir_all(folder);
    }
    let scratch = Scratch::create("open", &prefix, qmp, &image.path)?;
    let file = Image { path: scratch.path().join("scratch.qcow2"), limit: image.limit };
    file.create(node.size_bytes)?;
    let token = if node.is_overlay || node.size_bytes < SECTOR {
        None
    } else {
        file.add_bitmap(CANARY, node.size_bytes, &context.scratch)
            .map_err(|trouble| trouble.into_error(&file.path))?;
        Some(bitmaps::new_token(node.size_bytes).map_err(fail)?)
    };
    let limit_bytes = scratch.limit_bytes(qmp).map_err(fail)?;
    File::options().write(true).open(&file.path).and_then(|file| file.set_len(limit_bytes)).map_err(fail)?;
    scratch.give(&file.path).map_err(fail)?;

    let random = u32::from_be_bytes(random::bytes().map_err(fail)?) >> 8;
    let server = process.nbd_server(qmp, &image.path)?;
    let socket = server.socket.clone();
    let held = Held {
        names: format!("{names}{random:06x}"),
        process: process.clone(),
        _server: server,
        is_over: AtomicBool::new(false),
        _scratch: scratch,
        _reserved: reserved,
    };
    held.add_scratch(&file.path, node, limit_bytes).map_err(fail)?;
    let there: Vec<String> = match &token {
        Some(_) => bitmaps::usable(&node.bitmaps, &prefix),
        None => Vec::new(),
    };
    let token = held.begin(node, token, &prefix, &there, image).map_err(fail)?;
    let there = if token.is_some() { there } else { Vec::new() };
    let tracking = token.map(|token| {
        let place = Place::Open { process: process.clone(), node: node.name.clone(), image: image.clone() };
        Bitmaps::new(place, prefix, token, there.clone())
    });
    held.export(&there).map_err(fail)?;
    let export = held.name("e");
    let served = Served::new(&what, socket, &export, &there, Box::new(held))?;
    Ok(Opened { served, tracking })
}

/// What stands in the process while its image is read.
struct Held {
    /// How the names begin of all that is set up there.
    names: String,
    process: Arc<Process>,
    _server: Arc<NbdServer>,
    is_over: AtomicBool,
    _scratch: Scratch,
    _reserved: Reserved,
}

impl Held {
    fn name(&self, of: &str) -> String {
        format!("{}{of}", self.names)
    }

    /// A failed write to the file counts as done, for its twin takes everything: QEMU before 10.1 fails the guest's own
    /// write otherwise. That it failed is reported, and remembered.
    fn add_scratch(&self, path: &Path, node: &Node, limit_bytes: u64) -> io::Result<()> {
        let file = json!({ "driver": "file", "node-name": self.name("f"), "filename": path });
        let bounded =
            json!({ "driver": "raw", "node-name": self.name("r"), "size": limit_bytes, "file": file });
        let twin = json!({
            "driver": "null-co", "node-name": self.name("n"), "size": limit_bytes, "read-zeroes": true
        });
        let both = json!({
            "driver": "quorum", "node-name": self.name("q"), "vote-threshold": 1, "read-pattern": "fifo",
            "children": [bounded, twin]
        });
        // What lies beyond the limit is nowhere but in these caches.
        let maps = (node.size_bytes / MAPPED_BYTES).next_multiple_of(1 << 20);
        let scratch = json!({
            "driver": "qcow2", "node-name": self.name("s"), "file": both, "backing": node.name,
            "l2-cache-size": maps.clamp(*MAP_CACHE.start(), *MAP_CACHE.end()),
            "refcount-cache-size": REFCOUNT_CACHE, "overlap-check": "none"
        });
        self.process.ask("blockdev-add", &scratch).map(drop)
    }

    /// The instant. An image that cannot hold bitmaps is held without: then the token is gone.
    fn begin(
        &self,
        node: &Node,
        token: Option<String>,
        prefix: &str,
        there: &[String],
        image: &Image,
    ) -> io::Result<Option<String>> {
        let backup = json!({ "type": "blockdev-backup", "data": {
            "job-id": self.name("j"), "device": node.name, "target": self.name("s"), "sync": "none"
        }});
        if let Some(token) = token {
            let mut actions = self.bitmap_actions(node, &format!("{prefix}{token}"), there);
            actions.push(backup.clone());
            match self.process.execute("transaction", &json!({ "actions": actions })) {
                Ok(_) => return Ok(Some(token)),
                Err(NotDone::Refused(why)) => {
                    tracing::warn!(
                        "all of {} is read, its changes cannot be tracked: QEMU says: {why}",
                        image.path.display()
                    );
                }
                Err(broken) => return Err(broken.into_error()),
            }
        }
        self.process.ask("transaction", &json!({ "actions": [backup] }))?;
        Ok(None)
    }

    fn bitmap_actions(&self, node: &Node, new: &str, there: &[String]) -> Vec<Value> {
        let scratch = self.name("s");
        let granularity: u64 = GRANULARITY.parse().expect("it is a number");
        let add = |node: &str, name: &str, more: Value| {
            let mut data = json!({ "node": node, "name": name, "granularity": granularity });
            if let (Value::Object(data), Value::Object(more)) = (&mut data, more) {
                data.extend(more);
            }
            json!({ "type": "block-dirty-bitmap-add", "data": data })
        };
        let merge = |node: &str, target: &str, from: &str, name: &str| {
            let bitmaps = json!([{ "node": from, "name": name }]);
            let data = json!({ "node": node, "target": target, "bitmaps": bitmaps });
            json!({ "type": "block-dirty-bitmap-merge", "data": data })
        };
        let mut actions = vec![
            add(&node.name, new, json!({ "persistent": true })),
            merge(&node.name, new, &scratch, CANARY),
        ];
        for name in there {
            actions.push(add(&scratch, name, json!({ "disabled": true })));
            actions.push(merge(&scratch, name, &node.name, name));
        }
        actions
    }

    fn export(&self, there: &[String]) -> io::Result<()> {
        let export = json!({
            "type": "nbd", "id": self.name("e"), "node-name": self.name("s"), "name": self.name("e"),
            "writable": false, "bitmaps": there
        });
        self.process.ask("block-export-add", &export).map(drop)
    }
}

impl Hold for Held {
    fn vouch(&self) -> io::Result<()> {
        self.process.vouch(&self.name("j"), &self.names)
    }

    fn end(&self) {
        if self.is_over.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.process.sweep(&self.names) {
            tracing::warn!(
                "what was set up in the process at {} stays until the next capture takes it down: {error}",
                self.process.socket.display()
            );
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end();
    }
}
