//! A capture as it is lent to the members of a round: each reads it with what it knows of the item, and all of them read its
//! bytes once. What must hold: when it is taken back, nobody reads on, and what held it still is let go.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use farsite_model::content::{ReadAt, TreeEntry};
use farsite_model::{CaptureTime, Consistency, ItemId, ItemKind};
use farsite_sources::tree::{LocalTree, TreeFiles};
use farsite_sources::{Capture, Content};

use crate::group::Home;
use crate::patience::Patience;
use crate::shared::Shared;
use crate::tracked::Version;
use crate::tree::{self, Layout, TreeContent};

/// What a round gives to those who read its captures.
#[derive(Clone)]
pub(crate) struct Terms {
    /// Which of the round's members take part.
    pub(crate) members: Vec<bool>,
    pub(crate) window_bytes: u64,
    pub(crate) patience: Arc<Patience>,
    pub(crate) home: Home,
}

pub(crate) struct Lent {
    pub(crate) item: ItemId,
    pub(crate) kind: ItemKind,
    pub(crate) captured: CaptureTime,
    pub(crate) consistency: Consistency,
    pub(crate) ancestor: Option<ItemId>,
    pub(crate) details: BTreeMap<String, String>,
    pub(crate) version: Option<Arc<Version>>,
    pub(crate) block_bytes: u32,
    pub(crate) bytes: Bytes,
    terms: Terms,
    guard: Mutex<Option<Box<dyn Send + Sync>>>,
}

pub(crate) enum Bytes {
    Volume(Arc<Shared>),
    Tree(Tree),
}

/// Files, which each member may have given other places.
pub(crate) struct Tree {
    files: Arc<dyn TreeFiles>,
    laid_out: Mutex<Vec<LaidOut>>,
}

/// A tree in the places that its files have for one member, or for several.
#[derive(Clone)]
pub(crate) struct LaidOut {
    previous: Arc<Layout>,
    pub(crate) entries: Arc<Vec<TreeEntry>>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) bytes: Arc<Shared>,
    readers: Vec<usize>,
}

impl Tree {
    fn of(files: Arc<dyn TreeFiles>) -> Self {
        Self { files, laid_out: Mutex::default() }
    }
}

impl Lent {
    pub(crate) fn new(capture: Capture, block_bytes: u32, terms: Terms) -> Arc<Self> {
        let Capture {
            item, kind, captured, consistency, content, ancestor, details, tracking, guard, ..
        } = capture;
        let bytes = match content {
            Content::Volume(content) => Bytes::Volume(Arc::new(terms.share(content, block_bytes))),
            Content::Tree { root, paths } => Bytes::Tree(Tree::of(Arc::new(LocalTree::new(&root, paths)))),
            Content::FarTree(files) => Bytes::Tree(Tree::of(files)),
        };
        let version =
            tracking.map(|tracking| Arc::new(Version::new(tracking, item.clone(), terms.home.clone())));
        Arc::new(Self {
            item,
            kind,
            captured,
            consistency,
            ancestor,
            details,
            version,
            block_bytes,
            bytes,
            terms,
            guard: Mutex::new(guard),
        })
    }

    /// The tree, laid out from where its files lay for a member before. Members whose files lay at the same places read it
    /// together.
    pub(crate) fn lay_out(&self, tree: &Tree, previous: &Layout, member: usize) -> io::Result<LaidOut> {
        let mut all = tree.laid_out.lock().expect("no holder of this lock panics");
        let there = all.iter().position(|one| *one.previous == *previous);
        let place = if let Some(place) = there {
            place
        } else {
            let (entries, layout) = tree::place(tree.files.entries()?, u64::from(self.block_bytes), previous);
            let content: Arc<dyn ReadAt> = Arc::new(TreeContent::of(tree.files.clone(), &entries));
            let bytes = Arc::new(self.terms.share(content, self.block_bytes));
            all.iter().flat_map(|other| &other.readers).for_each(|reader| bytes.leave(*reader));
            all.push(LaidOut {
                previous: Arc::new(previous.clone()),
                entries: Arc::new(entries),
                layout: Arc::new(layout),
                bytes,
                readers: Vec::new(),
            });
            all.len() - 1
        };
        all[place].readers.push(member);
        let others = all.iter().enumerate().filter(|(other, _)| *other != place);
        others.for_each(|(_, other)| other.bytes.leave(member));
        Ok(all[place].clone())
    }

    fn all_shared(&self) -> Vec<Arc<Shared>> {
        match &self.bytes {
            Bytes::Volume(shared) => vec![shared.clone()],
            Bytes::Tree(tree) => {
                let laid_out = tree.laid_out.lock().expect("no holder of this lock panics");
                laid_out.iter().map(|one| one.bytes.clone()).collect()
            }
        }
    }

    pub(crate) fn take_back(&self) {
        self.all_shared().iter().for_each(|shared| shared.take_back());
        self.guard.lock().expect("no holder of this lock panics").take();
    }
}

impl Terms {
    fn share(&self, content: Arc<dyn ReadAt>, block_bytes: u32) -> Shared {
        Shared::new(content, block_bytes, &self.members, self.window_bytes, self.patience.clone())
    }
}
