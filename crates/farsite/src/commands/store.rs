//! `farsite store check`: whether the store can be trusted with what is asked of it.

use farsite_model::SiteName;
use farsite_replicate::connect;
use farsite_store::backend::race::{self, TamperProbe};
use farsite_store::hex::Hex;
use farsite_store::{StoreError, ledger};
use serde::Serialize;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::DONE;
use crate::output::Tone;
use crate::stores;

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Read its format, race its create-only writes, try to tamper with a probe, read all ledgers.
    Check {
        /// The store at this site.
        #[arg(long, value_name = "SITE")]
        store: Option<SiteName>,
        /// Rounds of the race.
        #[arg(long, default_value_t = 30)]
        rounds: usize,
    },
}

/// What was found.
#[derive(Debug, Serialize)]
struct Checked {
    store: String,
    id: Hex<16>,
    version: u32,
    groups: usize,
    damaged_entries: usize,
    race_rounds: usize,
    can_overwrite: bool,
    can_delete: bool,
}

pub async fn run(action: Action, context: &Context) -> Ended {
    let Action::Check { store: named, rounds } = action;
    let config = context.config()?;
    let site = stores::store_site(&config, named.as_ref())?;
    let store = connect::store(&config, &site).await?;
    let tag = Hex::<8>::random().to_string();
    race::race(&store.backend, &tag, rounds, 8).await.map_err(StoreError::from)?;
    let probe: TamperProbe = race::probe_tampering(&store.backend, &tag).await?;
    let groups = ledger::groups(&store).await?;
    let mut damage = Vec::new();
    for group in &groups {
        damage.extend(ledger::Ledger::open(&store, group).await?.state().damage.clone());
    }
    let checked = Checked {
        store: store.backend.describe(),
        id: store.id,
        version: store.format.version,
        groups: groups.len(),
        damaged_entries: damage.len(),
        race_rounds: rounds,
        can_overwrite: probe.can_overwrite,
        can_delete: probe.can_delete,
    };
    let out = context.out;
    if out.json {
        out.json(&checked);
    } else {
        let good = out.paint(Tone::Good, "✓");
        out.line(format!("{good} {} (id {}, format version {})", checked.store, checked.id, checked.version));
        out.line(format!("{good} create-only writes: exactly one winner in {rounds} rounds of 8 writers"));
        let (tone, mark) = if probe.is_tamper_resistant() { (Tone::Good, "✓") } else { (Tone::Warn, "!") };
        out.line(format!("{} {}", out.paint(tone, mark), probe.in_words()));
        if damage.is_empty() {
            out.line(format!("{good} every ledger is unbroken (groups: {})", groups.len()));
        }
    }
    if damage.is_empty() { Ok(DONE) } else { Err(StoreError::Damaged(damage).into()) }
}
