//! The group's ledger: the one order of everything that matters. A point is a recovery point from the moment its
//! entry exists; a failover begins with its `epoch-begun` entry; both compete for the same next number, so an old
//! primary's late commit either came before the epoch or fails. State is always a fold over the entries.

mod keeping;
mod site;
mod state;
mod statement;

use farsite_model::{Epoch, GroupName, PointId, RunId, SiteName, StoreTime};

pub use keeping::Patience;
pub use site::{SiteLedger, SitePromotion, SiteState, SiteStatement};
pub use state::{CommittedPoint, EpochStart, GroupState, PointFlaw};
pub use statement::{AcceptedLog, Committed, Statement};

pub(crate) use keeping::resolve;

use crate::chain::{Chain, Entry, Head};
use crate::format::Format;
use crate::keys::{Role, Signer};
use crate::signed::Kind;
use crate::{Damage, Store, StoreError};

/// Why an entry may not be written; nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "group {group} is in epoch {current} now (primary {primary}, begun {begun}); this agent works in epoch {mine} and can commit nothing\n  hint: the standby was promoted; stop this agent, and see `farsite status`"
    )]
    Fenced { group: GroupName, mine: Epoch, current: Epoch, primary: SiteName, begun: StoreTime },
    #[error("collection has released what run {run} builds on; the run starts anew")]
    PinReleased { run: RunId },
    #[error(
        "a promotion of {site} is under way: {promotion} to {to}, begun by {who} at {at}\n  hint: `farsite promotion show {promotion}`; take it over with `farsite failover --site {site} --resume`"
    )]
    PromotionOpen {
        site: SiteName,
        promotion: farsite_model::PromotionId,
        to: SiteName,
        who: String,
        at: StoreTime,
    },
    #[error("{what} is not signed by a key that may say it ({role})")]
    Role { what: &'static str, role: String },
    #[error("the ledger of {group} is damaged ({}); an agent writes nothing behind damage\n  hint: `farsite points verify {group}` says what is still whole; a failover can go on", list(.damage))]
    Damaged { group: GroupName, damage: Vec<Damage> },
    #[error(
        "what the points {points} of {group} need cannot be told ({damage}); nothing of {group} was removed\n  hint: `farsite store check` names what is damaged; `farsite points expire {group} POINT` lets a point go that cannot be mended"
    )]
    Incomplete { group: GroupName, points: String, damage: String },
    #[error(
        "the amendments of the store's keys are damaged ({}): for whom to seal is not known, and nothing was sealed\n  hint: `farsite store keys list` shows what is left; `farsite store keys accept-damage` when it has been said again",
        list(.0)
    )]
    KeysDamaged(Vec<Damage>),
    #[error("point {point} is not in the ledger of {group}")]
    UnknownPoint { group: GroupName, point: PointId },
    /// What must not be done; the text says why and what to do instead.
    #[error("{0}")]
    Unsafe(String),
    #[error("{0}")]
    Other(String),
}

fn list(damage: &[Damage]) -> String {
    damage.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// An entry that lost its number to another writer this often meets a store that lists wrongly.
const MOST_LOST_RACES: u64 = 1000;

/// A group's ledger, read up to some number. Reading on is cheap; every decision is made on what was read last.
pub struct Ledger {
    chain: Chain<Statement>,
    group: GroupName,
    head: Head,
    state: GroupState,
    entries: Vec<Entry<Statement>>,
}

/// All groups that have a ledger in this store.
pub async fn groups(store: &Store) -> Result<Vec<GroupName>, StoreError> {
    let mut groups: Vec<GroupName> = store
        .backend
        .list("ledger/", None)
        .await?
        .iter()
        .filter_map(|object| GroupName::new(object.key.split('/').nth(1)?).ok())
        .collect();
    groups.dedup();
    Ok(groups)
}

/// Why a key may sign nothing now.
fn unknown_key(format: &Format, signer: &Signer) -> String {
    match format.retired(&signer.key_id()) {
        Some(retired) => format!("this key was retired by {}: {}", retired.said.who, retired.said.reason),
        None => "this key is not listed in the store".into(),
    }
}

impl Ledger {
    /// Reads the whole ledger; one that has no entries yet is empty.
    pub async fn open(store: &Store, group: &GroupName) -> Result<Self, StoreError> {
        let mut ledger = Self {
            chain: Chain::new(store, format!("ledger/{group}"), Kind::Ledger),
            group: group.clone(),
            head: Head::START,
            state: GroupState::new(group.clone()),
            entries: Vec::new(),
        };
        ledger.refresh().await?;
        Ok(ledger)
    }

    pub fn group(&self) -> &GroupName {
        &self.group
    }
    pub fn state(&self) -> &GroupState {
        &self.state
    }
    pub fn head(&self) -> Head {
        self.head
    }
    /// Every entry, void ones included: the evidence.
    pub fn entries(&self) -> &[Entry<Statement>] {
        &self.entries
    }
    pub fn store(&self) -> &Store {
        self.chain.store()
    }

    /// Reads what was appended since.
    pub async fn refresh(&mut self) -> Result<(), StoreError> {
        let (entries, head) = self.chain.read(self.head).await?;
        for entry in &entries {
            self.state.apply(entry);
        }
        self.entries.extend(entries);
        self.head = head;
        Ok(())
    }

    /// Reads on and keeps the state alone: for who asks for nothing but where packs are now.
    pub(crate) async fn refresh_state(&mut self) -> Result<(), StoreError> {
        let read = self.refresh().await;
        self.entries = Vec::new();
        read
    }

    /// Appends what `decide` says about the newest state. When another writer takes the number first, the ledger is read on and
    /// `decide` is asked again: it sees every entry that precedes its own.
    pub async fn append(
        &mut self,
        signer: &Signer,
        mut decide: impl FnMut(&GroupState) -> Result<Statement, Refusal> + Send,
    ) -> Result<(u64, StoreTime), StoreError> {
        for round in 0..MOST_LOST_RACES {
            if round > 0 {
                // The winner's entry may take a moment to be listed.
                tokio::time::sleep(std::time::Duration::from_millis(round.min(20))).await;
            }
            self.refresh().await?;
            let statement = decide(&self.state)?;
            let format = self.store().format();
            let role = format.in_force(&signer.key_id()).cloned();
            // A statement that would have no effect is not written at all.
            let Some(role) = &role else {
                let role = unknown_key(&format, signer);
                return Err(Refusal::Role { what: "an entry", role }.into());
            };
            self.state.may_say(&statement, role)?;
            if role.role == Role::SourceAgent {
                self.state.refuse_damage()?;
            }
            if let Some((_, written)) = self.chain.append(self.head, signer, statement).await? {
                let number = self.head.next;
                // The entry is durable and nothing came before it, so it counts: when it cannot be read back now, that is
                // no reason to call it failed.
                if let Err(error) = self.refresh().await {
                    tracing::warn!(group = %self.group, number, "written, and not read back: {error}");
                }
                return Ok((number, written));
            }
        }
        Err(StoreError::Conflict { key: self.chain.key(self.head.next) })
    }

    /// Appends without asking whether the key may: what a thief would do. Only tests call this; the fold must make
    /// the entry void.
    #[doc(hidden)]
    pub async fn append_unchecked(
        &mut self,
        signer: &Signer,
        statement: Statement,
    ) -> Result<(), StoreError> {
        self.refresh().await?;
        while self.chain.append(self.head, signer, statement.clone()).await?.is_none() {
            self.refresh().await?;
        }
        self.refresh().await
    }
}
