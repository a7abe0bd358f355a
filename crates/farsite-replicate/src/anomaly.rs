//! Whether a point looks as its items usually do. What was seen of each item comes in, with what was seen of it in earlier
//! points; sentences for the ledger go out. What must hold: nothing is blocked by them, a first copy is never suspicious,
//! and what an item has done before, at other times, is not unusual.

mod history;

use std::collections::BTreeMap;

use farsite_model::ItemId;
use farsite_store::ledger::GroupState;
use farsite_store::manifest::Manifest;
use farsite_store::signals::Signals;
use jiff::{SignedDuration, Timestamp};

pub(crate) use self::history::History;
use crate::group::Group;

/// When more than this share of a group's items vanish at once, a person must look.
const MASS_DELETE_SHARE: f64 = 0.5;
const MASS_DELETE_ITEMS: usize = 3;
/// Fewer blocks than these are noise, whatever share of an item they are.
const LEAST_BLOCKS: u64 = 16;
/// Fewer files than these are nobody's mass.
const LEAST_FILES: u64 = 10;
/// Below this share of an item nobody is told that it was encrypted: an archive is put on a volume every day.
const OVERWRITTEN_SHARE: f64 = 0.1;
/// Above this share of an item a change of usual bytes is looked at as well, and a loss of data.
const REWRITTEN_SHARE: f64 = 0.5;
/// Who encrypts leaves little else: packages of an update are half compressed at most.
const MOSTLY: f64 = 0.5;
/// So many spreads from the median is far. (The spread is the median distance from the median, scaled so that it is the
/// standard deviation of what is normally distributed.)
const FAR: f64 = 6.0;
const MOST_OF_THE_WAY: f64 = 0.6;
const SPREAD_OF_MAD: f64 = 1.4826;
/// Even an item that never varied may vary by this much.
const SHARE_SLACK: f64 = 0.25;
const ENTROPY_SLACK_MILLIBITS: f64 = 300.0;
/// A rate of change is compared with no fewer earlier ones.
const LEAST_RATES: usize = 4;
/// What an item did this often, and this long ago or longer, is not unusual. An attack goes on for hours: what was seen
/// within them excuses nothing.
const USUAL_TIMES: usize = 2;
const USUAL_AGE: SignedDuration = SignedDuration::from_hours(12);
/// Entries of a ledger are small: of more items than these only their number is told.
const NAMED_ITEMS: usize = 8;

/// What was seen of an item in an earlier point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Earlier {
    pub(crate) at: Timestamp,
    pub(crate) signals: Signals,
    /// The point was called suspicious.
    pub(crate) suspicious: bool,
}

/// What a person should look at before this point is taken, in words.
pub(crate) async fn suspicious(
    group: &Group,
    history: &History,
    state: &GroupState,
    manifest: &Manifest,
    before: Option<&Manifest>,
) -> Vec<String> {
    let mut words = Vec::from_iter(mass_delete(manifest, before));
    let captured = manifest.items.iter().filter(|item| item.carried_from.is_none());
    let odd: Vec<(&ItemId, Timestamp, Signals)> = captured
        .filter_map(|item| Some((&item.id, item.stamp.captured.0, item.signals?)))
        .filter(|(_, _, signals)| is_worth_a_look(signals))
        .collect();
    if odd.is_empty() {
        return words;
    }
    // History that cannot be read makes everything look new, and what is new is not judged by it.
    if let Err(error) = history.fill(group, state).await {
        tracing::warn!(group = %group.policy.group, "some of its history is not known: {error}");
    }
    let mut found = BTreeMap::new();
    for (item, at, signals) in odd {
        let earlier = history.of(item).unwrap_or_else(|error| {
            tracing::warn!(item = %item, "its history cannot be read: {error}");
            Vec::new()
        });
        let why = judge(&signals, at, &earlier);
        if !why.is_empty() {
            found.insert(item, why.join(" and "));
        }
    }
    let more = found.len().saturating_sub(NAMED_ITEMS);
    words.extend(found.into_iter().take(NAMED_ITEMS).map(|(item, why)| format!("{item}: {why}")));
    if more > 0 {
        words.push(format!("{more} more items look like that"));
    }
    words
}

fn mass_delete(manifest: &Manifest, before: Option<&Manifest>) -> Option<String> {
    let had = before.map_or(0, |b| b.items.len());
    let gone = manifest.absent.len();
    (gone >= MASS_DELETE_ITEMS && gone as f64 > had as f64 * MASS_DELETE_SHARE)
        .then(|| format!("mass delete: {gone} of {had} items are gone since the point before"))
}

fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { (part as f64 / of as f64).min(1.0) }
}

/// What of the item was there before and is not there any more.
fn lost(signals: &Signals) -> f64 {
    share(signals.lost_blocks(), signals.blocks_before())
}
fn incompressible(signals: &Signals) -> f64 {
    share(signals.incompressible_blocks, signals.new_blocks())
}
fn files_gone(signals: &Signals) -> f64 {
    if signals.files_before < LEAST_FILES { 0.0 } else { share(signals.files_gone, signals.files_before) }
}

/// Most points end here: nothing of earlier ones is read for them.
fn is_worth_a_look(signals: &Signals) -> bool {
    let blocks = signals.lost_blocks() >= LEAST_BLOCKS && lost(signals) >= OVERWRITTEN_SHARE;
    !signals.first_copy && (blocks || files_gone(signals) >= REWRITTEN_SHARE)
}

/// What is unusual about an item, by its own history.
fn judge(now: &Signals, at: Timestamp, earlier: &[Earlier]) -> Vec<String> {
    let mut words = Vec::new();
    if !is_worth_a_look(now) {
        return words;
    }
    let is_old = |e: &Earlier| at.duration_since(e.at) >= USUAL_AGE;
    let long_ago: Vec<&Earlier> = earlier.iter().filter(|e| !e.signals.first_copy && is_old(e)).collect();
    // What was called suspicious just now is no measure yet: an attack must not make itself usual.
    let earlier: Vec<&Earlier> = earlier.iter().filter(|e| !e.suspicious || is_old(e)).collect();
    let is_usual =
        |like: &dyn Fn(&Signals) -> bool| long_ago.iter().filter(|e| like(&e.signals)).count() >= USUAL_TIMES;
    let much = |e: &Signals| lost(e) >= lost(now) / 1.5;

    if now.new_blocks() >= LEAST_BLOCKS
        && let Some(usual) = became_incompressible(now, &earlier)
        && !is_usual(&|e| much(e) && incompressible(e) >= incompressible(now) / 1.25)
    {
        words.push(format!(
            "{} of it was overwritten or removed, and {} of what is new cannot be compressed, as if it were encrypted ({} is usual)",
            percent(lost(now)),
            percent(incompressible(now)),
            percent(usual)
        ));
    }
    let cleared = share(now.cleared_blocks, now.blocks_before());
    if now.cleared_blocks >= LEAST_BLOCKS
        && cleared >= REWRITTEN_SHARE
        && !is_usual(&|e| share(e.cleared_blocks, e.blocks_before()) >= cleared / 1.5)
    {
        words.push(format!("mass delete: {} of its data is gone", percent(cleared)));
    }
    if files_gone(now) >= REWRITTEN_SHARE && !is_usual(&|e| files_gone(e) >= files_gone(now) / 1.5) {
        words.push(format!(
            "mass delete: {} of {} files are gone or have other names",
            now.files_gone, now.files_before
        ));
    }
    if words.is_empty()
        && lost(now) >= REWRITTEN_SHARE
        && let Some(usual) = changed_more(now, at, &earlier)
        && !is_usual(&much)
    {
        words.push(format!("{} of it was overwritten ({} is usual)", percent(lost(now)), percent(usual)));
    }
    words
}

/// The usual share of incompressible blocks, when this one is far above it and the bytes are far more mixed.
fn became_incompressible(now: &Signals, earlier: &[&Earlier]) -> Option<f64> {
    // A first copy tells what the item's bytes are like.
    let told: Vec<&Signals> =
        earlier.iter().map(|e| &e.signals).filter(|s| s.new_blocks() >= LEAST_BLOCKS).collect();
    let shares = Usual::of(told.iter().map(|s| incompressible(s)).collect())?;
    let entropies = Usual::of(told.iter().map(|s| f64::from(s.entropy_millibits)).collect())?;
    let more = incompressible(now) >= MOSTLY && incompressible(now) > shares.far_above(SHARE_SLACK, 1.0);
    let mixed = f64::from(now.entropy_millibits) > entropies.far_above(ENTROPY_SLACK_MILLIBITS, 8000.0);
    (more && mixed).then_some(shares.median)
}

/// The usual share that changes when something changes, when this one is far above it.
fn changed_more(now: &Signals, at: Timestamp, earlier: &[&Earlier]) -> Option<f64> {
    let compared: Vec<&&Earlier> = earlier.iter().filter(|e| !e.signals.first_copy).collect();
    if compared.len() < LEAST_RATES {
        return None;
    }
    let rates = Usual::of(compared.iter().map(|e| lost(&e.signals)).collect())?;
    // A point after a long pause holds what would else have been spread over many.
    let pauses = Usual::of(
        compared.windows(2).map(|two| two[1].at.duration_since(two[0].at).as_secs_f64()).collect(),
    )?;
    let last = compared.last().map_or(at, |e| e.at);
    let times = (at.duration_since(last).as_secs_f64() / pauses.median.max(1.0)).max(1.0);
    (lost(now) > rates.far_above(OVERWRITTEN_SHARE, 1.0) * times).then_some(rates.median)
}

/// Where most of earlier values lie.
struct Usual {
    median: f64,
    spread: f64,
}

impl Usual {
    fn of(values: Vec<f64>) -> Option<Self> {
        let median = median(values.clone())?;
        let spread = median_of_distances(values, median)? * SPREAD_OF_MAD;
        Some(Self { median, spread })
    }
    /// However much a value varies: what is most of the way up to `most` is far.
    fn far_above(&self, slack: f64, most: f64) -> f64 {
        self.median + (FAR * self.spread).min((most - self.median) * MOST_OF_THE_WAY).max(slack)
    }
}

fn median_of_distances(values: Vec<f64>, from: f64) -> Option<f64> {
    median(values.into_iter().map(|value| (value - from).abs()).collect())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

#[cfg(test)]
mod tests;
