//! A member's seat in its round: what the round gives it to do, how it leaves, and how its end is told.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use farsite_model::SiteName;
use farsite_store::StoreError;
use tokio::sync::mpsc;

use crate::ReplicateError;
use crate::group::Group;
use crate::member::{self, Begin, Order};
use crate::patience::Patience;
use crate::round::Ended;
use crate::run::RunOptions;

/// Why a member's run stops that would have gone on.
#[derive(Clone)]
pub(crate) enum LeftBy {
    Cut,
    Fenced { at: SiteName, why: String },
    Failed(String),
}

pub(crate) struct End {
    pub(crate) number: usize,
    pub(crate) has_committed: bool,
    /// What its store says, when that names another site primary.
    pub(crate) fenced: Option<String>,
}

/// A member from its beginning to its end.
pub(crate) async fn seated(
    begin: Begin,
    number: usize,
    left_by: Arc<Mutex<Option<LeftBy>>>,
    ends: mpsc::UnboundedSender<End>,
    ended: mpsc::UnboundedSender<Ended>,
) {
    let (group, to) = (begin.group.policy.group.to_string(), begin.group.to.clone());
    let patience = Patience::of(&begin.group.policy).total();
    let result = tokio::spawn(member::run(begin)).await;
    let result = result.unwrap_or_else(|error| {
        Err(ReplicateError::Setup(format!("group {group}: the run to {to} ended badly: {error}")))
    });
    let left_by = left_by.lock().expect("no holder of this lock panics").clone();
    let was_cut = matches!(left_by, Some(LeftBy::Cut));
    let result = match (result, left_by) {
        (Err(ReplicateError::Store(StoreError::Cancelled)), Some(left_by)) => Err(match left_by {
            LeftBy::Cut => ReplicateError::CutOff { group, to: to.clone(), patience },
            LeftBy::Fenced { at, why } => ReplicateError::FencedAt { group, at, why },
            LeftBy::Failed(why) => ReplicateError::Setup(why),
        }),
        (result, _) => result,
    };
    let end = End {
        number,
        has_committed: result.is_ok(),
        fenced: result.as_ref().err().filter(|error| error.is_fenced()).map(ToString::to_string),
    };
    let _ = ended.send(Ended { to, result, was_cut });
    let _ = ends.send(end);
}

/// A member as its round sees it.
pub(crate) struct Seat {
    pub(crate) group: Arc<Group>,
    pub(crate) options: RunOptions,
    /// None when it takes no part any more.
    pub(crate) orders: Option<mpsc::Sender<Order>>,
    pub(crate) left_by: Arc<Mutex<Option<LeftBy>>>,
    pub(crate) has_ended: bool,
}

impl Seat {
    /// Its run stops, and makes no point that does not exist by then.
    pub(crate) fn leave(&mut self, by: LeftBy) {
        self.left_by.lock().expect("no holder of this lock panics").get_or_insert(by);
        self.options.cancel.store(true, Ordering::Relaxed);
        self.orders = None;
    }

    /// It is waited for: it has not ended, and was not cut off.
    pub(crate) fn is_awaited(&self) -> bool {
        let left_by = self.left_by.lock().expect("no holder of this lock panics");
        !self.has_ended && !matches!(*left_by, Some(LeftBy::Cut))
    }
}
