//! A promotion's journal in the store: one chain for each group, `journal/<promotion>/<group>`.
//!
//! What must hold: of several writers of one number exactly one succeeds; only operators and standby agents can say
//! anything; an entry that does not count keeps its number, so that numbers never shift under a running driver.

use std::sync::Arc;

use async_trait::async_trait;
use farsite_model::{GroupName, PromotionId, StoreTime};
use farsite_runbook::journal::{Journal, JournalEntry, JournalError};
use farsite_store::Store;
use farsite_store::chain::{Chain, Entry, EntryHash, Head};
use farsite_store::keys::{Role, Signer, describe};
use farsite_store::signed::Kind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{PromoteError, driver};

/// The step that an entry without effect is about: no runbook's step has this name.
const VOID: &str = "(void)";

/// An entry as it stands in the store: in an object of its own, because some entries have fields that the chain's envelope
/// has as well (`at`).
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Said {
    says: JournalEntry,
}

/// One entry as a report needs it.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub number: u64,
    pub hash: EntryHash,
    /// The store's time of writing.
    pub written: StoreTime,
    /// The writer's own clock; of an entry that does not count, the store's.
    pub at: Timestamp,
    /// `Err` says why the entry does not count.
    pub said: Result<(JournalEntry, String), String>,
}

/// The journal of one group in one promotion.
pub struct StoreJournal {
    chain: Chain<Said>,
    signer: Option<Arc<Signer>>,
    /// A person's word that no other driver lives: their deadlines are over.
    others_are_dead: bool,
    own: String,
    read: Mutex<(Head, Vec<Entry<Said>>)>,
}

/// All groups that a promotion has a journal for, in order of name.
pub async fn groups_of(store: &Store, promotion: PromotionId) -> Result<Vec<GroupName>, PromoteError> {
    let listed = store
        .backend
        .list(&format!("journal/{promotion}/"), None)
        .await
        .map_err(farsite_store::StoreError::from)?;
    let mut groups: Vec<GroupName> =
        listed.iter().filter_map(|object| GroupName::new(object.key.split('/').nth(2)?).ok()).collect();
    groups.dedup();
    Ok(groups)
}

impl StoreJournal {
    /// To read only.
    pub fn reading(store: &Store, promotion: PromotionId, group: &GroupName) -> Self {
        Self {
            chain: Chain::new(store, format!("journal/{promotion}/{group}"), Kind::Journal),
            signer: None,
            others_are_dead: false,
            own: String::new(),
            read: Mutex::new((Head::START, Vec::new())),
        }
    }

    pub fn writing(store: &Store, promotion: PromotionId, group: &GroupName, signer: &Arc<Signer>) -> Self {
        Self { signer: Some(signer.clone()), ..Self::reading(store, promotion, group) }
    }

    /// For a driver: deadlines of drivers that are known to be dead are over. `others_are_dead` is a person's word.
    pub fn driven_by(mut self, own: &str, others_are_dead: bool) -> Self {
        own.clone_into(&mut self.own);
        self.others_are_dead = others_are_dead;
        self
    }

    async fn refresh(&self, read: &mut (Head, Vec<Entry<Said>>)) -> Result<(), JournalError> {
        let (entries, head) =
            self.chain.read(read.0).await.map_err(|e| JournalError::Store(e.to_string()))?;
        read.0 = head;
        read.1.extend(entries);
        Ok(())
    }

    /// Everything that stands there, with hashes and what does not count.
    pub async fn record(&self) -> Result<Vec<Recorded>, PromoteError> {
        let mut read = self.read.lock().await;
        self.refresh(&mut read).await.map_err(|e| PromoteError::Failed(e.to_string()))?;
        Ok(read.1.iter().map(recorded).collect())
    }

    /// What counts, in order.
    pub async fn entries(&self) -> Result<Vec<(u64, JournalEntry)>, PromoteError> {
        self.read_from(0).await.map_err(|e| PromoteError::Failed(e.to_string()))
    }

    /// Writes a person's entry behind whatever stands there. `decide` sees all that precedes it, and may refuse.
    pub async fn say(
        &self,
        mut decide: impl FnMut(&[(u64, JournalEntry)]) -> Result<Option<JournalEntry>, PromoteError>,
    ) -> Result<bool, PromoteError> {
        loop {
            let entries = self.entries().await?;
            let Some(entry) = decide(&entries)? else { return Ok(false) };
            let number = entries.last().map_or(0, |(n, _)| n + 1);
            match self.append(number, &entry).await {
                Ok(()) => return Ok(true),
                Err(JournalError::Taken { .. }) => {}
                Err(error) => return Err(PromoteError::Failed(error.to_string())),
            }
        }
    }

    /// The entry as a driver must see it.
    fn seen(&self, entry: &Entry<Said>) -> JournalEntry {
        match recorded(entry).said {
            Ok((JournalEntry::Intent { step, what, attempt, driver, deadline }, _)) => {
                let over = driver != self.own && (self.others_are_dead || driver::is_dead_here(&driver));
                let deadline = if over { deadline.min(Timestamp::now()) } else { deadline };
                JournalEntry::Intent { step, what, attempt, driver, deadline }
            }
            Ok((said, _)) => said,
            // A gate that no step has changes nothing in a run's state.
            Err(why) => {
                JournalEntry::Gate { step: VOID.into(), answer: false, who: why, at: entry.written.0 }
            }
        }
    }
}

fn recorded(entry: &Entry<Said>) -> Recorded {
    let (at, said) = match &entry.said {
        Ok((envelope, by)) if by.role == Role::SourceAgent => {
            (envelope.at, Err(format!("signed by a {}, who has no say in a promotion", describe(by))))
        }
        Ok((envelope, by)) => (envelope.at, Ok((envelope.says.says.clone(), describe(by)))),
        Err(void) => (entry.written.0, Err(void.to_string())),
    };
    Recorded { number: entry.number, hash: entry.hash, written: entry.written, at, said }
}

#[async_trait]
impl Journal for StoreJournal {
    async fn append(&self, number: u64, entry: &JournalEntry) -> Result<(), JournalError> {
        let Some(signer) = &self.signer else {
            return Err(JournalError::Store("it was opened to be read only".into()));
        };
        let mut read = self.read.lock().await;
        if read.0.next < number {
            self.refresh(&mut read).await?;
        }
        if read.0.next > number {
            return Err(JournalError::Taken { number });
        }
        if read.0.next < number {
            return Err(JournalError::Store(format!(
                "entry {number} cannot follow entry {}: entries behind it were deleted",
                read.0.next
            )));
        }
        let written = self
            .chain
            .append(read.0, signer, Said { says: entry.clone() })
            .await
            .map_err(|e| JournalError::Store(e.to_string()))?;
        if written.is_none() {
            self.refresh(&mut read).await?;
            return Err(JournalError::Taken { number });
        }
        // What stands there counts, not what was meant: it is read back.
        self.refresh(&mut read).await
    }

    async fn read_from(&self, number: u64) -> Result<Vec<(u64, JournalEntry)>, JournalError> {
        let mut read = self.read.lock().await;
        self.refresh(&mut read).await?;
        Ok(read.1.iter().skip(number as usize).map(|entry| (entry.number, self.seen(entry))).collect())
    }
}
