//! Groups as the dashboard shows them: every figure as the words a person reads, and how bad it is. Figures are
//! rounded to the worse side (invariant 8).

use farsite_model::quantity::{ByteSize, Span};
use farsite_model::status::{GroupStatus, Phase, PointStatus};
use jiff::Timestamp;
use serde::Serialize;

/// From this share of the target on a group is close to missing it.
const CLOSE: f64 = 0.8;

/// Where the target's mark stands on the bar, in percent: the rest shows how far it is missed.
const TARGET_MARK_PERCENT: f64 = 75.0;

/// How much a person has to care; the worst comes first on the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Care {
    Good,
    Look,
    Act,
}

#[derive(Debug, Serialize)]
pub(crate) struct Board {
    /// One line for the whole page and its title.
    pub(crate) headline: String,
    pub(crate) care: Care,
    pub(crate) as_of: String,
    pub(crate) target_mark_percent: f64,
    pub(crate) cards: Vec<Card>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Card {
    pub(crate) group: String,
    /// `north → south`
    route: String,
    level: Option<String>,
    phase: &'static str,
    phase_care: Care,
    pub(crate) care: Care,
    progression: String,
    primary: String,
    epoch: u64,
    pub(crate) exposure: String,
    target: Option<String>,
    pub(crate) verdict: String,
    verdict_care: Care,
    bar: Option<Bar>,
    kinds: Vec<KindRow>,
    newest: Option<Newest>,
    proven: String,
    proven_care: Care,
    points: String,
    warnings: Vec<String>,
    /// What to type next, when there is something to do.
    next: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct KindRow {
    kind: String,
    exposure: String,
    bar: Option<Bar>,
}

/// A length on a scale on which the target stands at [`TARGET_MARK_PERCENT`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Bar {
    percent: f64,
    care: Care,
}

#[derive(Debug, Serialize)]
pub(crate) struct Newest {
    id: String,
    captured: String,
    committed: String,
    about: String,
    whole: bool,
}

impl Board {
    pub(crate) fn of(groups: &[GroupStatus], now: Timestamp) -> Self {
        let mut cards: Vec<Card> = groups.iter().map(Card::of).collect();
        cards.sort_by(|a, b| b.care.cmp(&a.care).then_with(|| a.group.cmp(&b.group)));
        let count = |care| cards.iter().filter(|card| card.care == care).count();
        let headline = match (cards.len(), count(Care::Act), count(Care::Look)) {
            (0, ..) => "no protection group yet".to_owned(),
            (all, 0, 0) => format!("{all} of {} well", plural(all, "group")),
            (all, 0, look) => format!("{look} of {} to look at", plural(all, "group")),
            (all, act, _) => format!("{act} of {} to act on", plural(all, "group")),
        };
        Self {
            headline,
            care: cards.first().map_or(Care::Look, |card| card.care),
            as_of: format!("{now:.0}"),
            target_mark_percent: TARGET_MARK_PERCENT,
            cards,
        }
    }
}

impl Card {
    fn of(status: &GroupStatus) -> Self {
        let (phase, phase_care) = phase(&status.phase);
        let (verdict, verdict_care) = verdict(status);
        let (proven, proven_care) = proven(status);
        let warned = if status.warnings.is_empty() { Care::Good } else { Care::Look };
        let to: Vec<&str> = status.to.iter().map(farsite_model::SiteName::as_str).collect();
        Self {
            group: status.group.to_string(),
            route: format!(
                "{} → {}",
                status.site,
                if to.is_empty() { "nowhere".to_owned() } else { to.join(", ") }
            ),
            level: status.level.map(|level| level.to_string()),
            phase,
            phase_care,
            care: phase_care.max(verdict_care).max(warned),
            progression: status.progression.clone(),
            primary: status.primary.to_string(),
            epoch: status.epoch.0,
            exposure: status.exposure_s.map_or_else(|| "unknown".to_owned(), duration),
            target: status.rpo_target_s.map(duration),
            verdict,
            verdict_care,
            bar: status.exposure_s.and_then(|exposure| bar(exposure, status.rpo_target_s)),
            kinds: status
                .exposure_by_kind_s
                .iter()
                .map(|(kind, exposure)| KindRow {
                    kind: kind.clone(),
                    exposure: duration(*exposure),
                    bar: bar(*exposure, status.rpo_target_s),
                })
                .collect(),
            newest: status.newest_point.as_ref().map(Newest::of),
            proven,
            proven_care,
            points: match status.partial_points {
                0 => status.points.to_string(),
                partial => format!("{}, of which {partial} partial", status.points),
            },
            warnings: status.warnings.clone(),
            next: next(status, verdict_care),
        }
    }
}

impl Newest {
    fn of(point: &PointStatus) -> Self {
        Self {
            id: point.id.short(),
            captured: format!("{:.0}", point.captured.0),
            committed: format!("{:.0}", point.committed.0),
            about: format!(
                "{}, {} at the weakest, {} changed, {} shipped",
                plural(point.items, "item"),
                point.weakest,
                ByteSize(point.changed_bytes),
                ByteSize(point.shipped_bytes)
            ),
            whole: point.whole,
        }
    }
}

fn phase(phase: &Phase) -> (&'static str, Care) {
    match phase {
        Phase::InitialSync => ("initial sync", Care::Look),
        Phase::Replicating => ("replicating", Care::Good),
        Phase::Promoting => ("promoting", Care::Look),
        Phase::Promoted => ("promoted, not accepted", Care::Look),
        Phase::SplitBrainSuspected => ("split brain suspected", Care::Act),
        Phase::Damaged => ("damaged", Care::Act),
    }
}

fn verdict(status: &GroupStatus) -> (String, Care) {
    let Some(exposure) = status.exposure_s else {
        return match status.phase {
            Phase::InitialSync => ("no point yet: a disaster now would lose all".to_owned(), Care::Look),
            // Right after a promotion the new primary has none of its own; the phase already asks for a look.
            Phase::Promoting | Phase::Promoted => ("no point of this epoch yet".to_owned(), Care::Look),
            _ => ("no point that a failover would take by itself".to_owned(), Care::Act),
        };
    };
    match (status.rpo_ratio, status.rpo_target_s) {
        (Some(ratio), Some(target)) if ratio > 1.0 => {
            (format!("target missed by {}", duration(exposure - target)), Care::Act)
        }
        (Some(ratio), _) if ratio > 1.0 => ("target missed".to_owned(), Care::Act),
        (Some(ratio), _) if ratio > CLOSE => ("close to the target".to_owned(), Care::Look),
        (Some(ratio), _) if ratio >= 0.0 => ("within the target".to_owned(), Care::Good),
        // Not a number, or negative: neither is believed.
        (Some(_), _) => ("cannot be compared with the target".to_owned(), Care::Look),
        (None, _) => ("no target to compare with".to_owned(), Care::Good),
    }
}

fn proven(status: &GroupStatus) -> (String, Care) {
    match (&status.newest_proven, &status.newest_point) {
        (Some(proven), Some(newest)) if *proven == newest.id => {
            (format!("{}, the newest point", proven.short()), Care::Good)
        }
        (Some(proven), _) => (format!("{}, older than the newest point", proven.short()), Care::Good),
        (None, _) => ("no point is proven yet".to_owned(), Care::Look),
    }
}

fn next(status: &GroupStatus, verdict_care: Care) -> Option<String> {
    let group = &status.group;
    match status.phase {
        Phase::Damaged => Some("farsite store check".to_owned()),
        Phase::SplitBrainSuspected | Phase::Promoting => Some("farsite promotion list".to_owned()),
        Phase::Promoted => Some("farsite accept   or   farsite rollback".to_owned()),
        Phase::InitialSync | Phase::Replicating => match (status.exposure_s, verdict_care) {
            (None, Care::Act) => Some(format!("farsite points list {group}")),
            (_, Care::Act) => Some(format!("farsite status {group}")),
            _ => None,
        },
    }
}

fn bar(exposure_s: f64, target_s: Option<f64>) -> Option<Bar> {
    let ratio = exposure_s / target_s.filter(|target| *target > 0.0)?;
    if !ratio.is_finite() {
        return None;
    }
    let care = match ratio {
        ratio if ratio > 1.0 => Care::Act,
        ratio if ratio > CLOSE => Care::Look,
        _ => Care::Good,
    };
    // Rounded, so that the page holds no endless decimals.
    let percent = (ratio * TARGET_MARK_PERCENT).clamp(0.0, 100.0);
    Some(Bar { percent: (percent * 10.0).round() / 10.0, care })
}

/// Rounded up to what a person reads: seconds below an hour, minutes below a day, hours beyond.
fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown".to_owned();
    }
    let grain: u32 = match seconds {
        s if s < 3_600.0 => 1,
        s if s < 86_400.0 => 60,
        _ => 3_600,
    };
    let grains = (seconds / f64::from(grain)).ceil() as u64;
    Span::from_secs(grains.saturating_mul(u64::from(grain))).to_string()
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_to_the_worse_side() {
        for (seconds, text) in [
            (0.0, "0s"),
            (0.01, "1s"),
            (61.2, "1m2s"),
            (3_601.0, "1h1m"),
            (86_401.0, "1d1h"),
            (-5.0, "0s"),
            (f64::NAN, "unknown"),
            (f64::INFINITY, "unknown"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn the_bar_shows_by_how_much_a_target_is_missed() {
        let bar = |exposure| bar(exposure, Some(100.0)).unwrap();
        assert_eq!(bar(100.0), Bar { percent: 75.0, care: Care::Look });
        assert_eq!(bar(10.0), Bar { percent: 7.5, care: Care::Good });
        assert_eq!(bar(120.0), Bar { percent: 90.0, care: Care::Act });
        assert_eq!(bar(1e9), Bar { percent: 100.0, care: Care::Act });
        assert_eq!(super::bar(1.0, None), None);
        assert_eq!(super::bar(1.0, Some(0.0)), None);
    }
}
