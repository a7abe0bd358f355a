//! Which recovery point a promotion restores. A group's state comes in; the points with what is wrong with each, and
//! the one that the order means, go out. Pure.
//!
//! What must hold: `latest` is never partial, damaged, suspicious, expired or of an epoch that has ended. A person may
//! name such a point; then what is wrong with it is repeated.

use std::collections::BTreeMap;
use std::fmt;

use farsite_model::time::parse_moment;
use farsite_model::{Consistency, Epoch, GroupName, PointId, StoreTime, ids};
use farsite_store::ledger::{CommittedPoint, GroupState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What an order says about the point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointChoice {
    /// The newest that may be taken without asking.
    Latest,
    /// The same, and databases on to the last log that arrived.
    LatestLog,
    /// The newest of those that somebody restored and checked.
    LatestProven,
    /// The newest that stands for a moment at or before this one, and databases on to it.
    At(Timestamp),
    /// This very point; the start of its id is enough.
    Id(String),
}

impl PointChoice {
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, String> {
        let text = text.trim();
        match text {
            "latest" => return Ok(Self::Latest),
            "latest-log" => return Ok(Self::LatestLog),
            "latest-proven" => return Ok(Self::LatestProven),
            _ => {}
        }
        if (4..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Self::Id(text.to_ascii_lowercase()));
        }
        parse_moment(text, now).map(Self::At).map_err(|_| {
            format!(
                "{text:?} names no point: write latest, latest-log, latest-proven, a point's id (4 to 16 hex digits), a time such as 2026-11-24T03:00:00Z or an age such as `2h ago`"
            )
        })
    }

    /// How far databases are rolled forward from the point.
    pub fn replay(&self) -> Replay {
        match self {
            Self::Latest | Self::LatestProven | Self::Id(_) => Replay::Point,
            Self::LatestLog => Replay::LastAccepted,
            Self::At(moment) => Replay::Until(*moment),
        }
    }
}

impl fmt::Display for PointChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::LatestLog => f.write_str("latest-log"),
            Self::LatestProven => f.write_str("latest-proven"),
            Self::At(moment) => write!(f, "{moment}"),
            Self::Id(id) => f.write_str(id),
        }
    }
}

/// How far a database goes beyond its base snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replay {
    /// To the position that was read before images and volumes were captured: all of one moment.
    Point,
    /// To the end of the log that the epoch accepts: the least loss, and the database is younger than its volumes.
    LastAccepted,
    Until(Timestamp),
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Point => f.write_str("databases as of the point itself"),
            Self::LastAccepted => f.write_str("databases up to the last log that arrived"),
            Self::Until(moment) => write!(f, "databases up to {moment}"),
        }
    }
}

/// One point as an operator sees it before deciding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub point: PointId,
    pub epoch: Epoch,
    /// The earliest moment, in store time, that its oldest item can stand for.
    pub stands_for: StoreTime,
    pub committed: StoreTime,
    /// What would be lost with it now, at worst.
    pub exposure_s: f64,
    pub exposure_by_kind_s: BTreeMap<String, f64>,
    /// How it was proven; none when nobody has restored it yet.
    pub proven: Option<String>,
    pub held: bool,
    pub whole: bool,
    pub items: u64,
    pub weakest: Consistency,
    /// What is wrong with it, in words; empty for a point that may be taken without asking.
    pub flaws: Vec<String>,
    /// What a failover takes when nobody says otherwise.
    pub is_default: bool,
}

/// The newest points, newest first.
pub fn candidates(state: &GroupState, now: StoreTime, limit: usize) -> Vec<Candidate> {
    let default = state.default_point().map(CommittedPoint::id);
    state.points.iter().rev().take(limit).map(|point| candidate(point, now, default)).collect()
}

fn candidate(point: &CommittedPoint, now: StoreTime, default: Option<PointId>) -> Candidate {
    Candidate {
        point: point.id(),
        epoch: point.said.epoch,
        stands_for: point.stands_for(),
        committed: point.committed,
        exposure_s: point.exposure(now).as_secs_f64(),
        exposure_by_kind_s: point
            .said
            .by_kind
            .iter()
            .map(|(kind, stamp)| (kind.to_string(), stamp.exposure(now).as_secs_f64()))
            .collect(),
        proven: point.proven.clone(),
        held: point.held,
        whole: point.said.whole,
        items: point.said.items,
        weakest: point.said.weakest,
        flaws: flaws(point),
        is_default: default == Some(point.id()),
    }
}

/// What is wrong with a point, in words.
pub fn flaws(point: &CommittedPoint) -> Vec<String> {
    let mut flaws: Vec<String> = point.flaws().iter().map(ToString::to_string).collect();
    if point.superseded {
        flaws.push(format!("of epoch {}, which has ended", point.said.epoch));
    }
    flaws
}

/// The point that an order means.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    pub point: PointId,
    pub replay: Replay,
    /// Not empty only where a person named the point.
    pub flaws: Vec<String>,
    /// What a person should know who takes it: newer points that were passed over, and older ones that look suspicious.
    pub warnings: Vec<String>,
}

/// Why no point was chosen, with the points there are.
#[derive(Debug, Clone, PartialEq)]
pub struct NoPoint {
    pub group: GroupName,
    pub why: String,
    pub candidates: Vec<Candidate>,
}

/// How many points a refusal lists.
const LISTED: usize = 8;

impl fmt::Display for NoPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}: {}", self.group, self.why)?;
        for candidate in &self.candidates {
            let wrong = if candidate.flaws.is_empty() {
                "nothing is wrong with it".to_owned()
            } else {
                candidate.flaws.join("; ")
            };
            write!(f, "\n    {}  stands for {}  {wrong}", candidate.point, candidate.stands_for)?;
        }
        if self.candidates.is_empty() {
            write!(f, "\n  hint: the store holds no point of this group; nothing can be restored from it")
        } else {
            write!(
                f,
                "\n  hint: `--point ID` takes one of these all the same, what is wrong with it included"
            )
        }
    }
}
impl std::error::Error for NoPoint {}

/// Finds the point that `choice` means. `now` only dates the list in a refusal.
pub fn choose(state: &GroupState, choice: &PointChoice, now: StoreTime) -> Result<Chosen, Box<NoPoint>> {
    let refuse = |why: String| {
        Box::new(NoPoint { group: state.group.clone(), why, candidates: candidates(state, now, LISTED) })
    };
    let found = match choice {
        PointChoice::Latest | PointChoice::LatestLog => state
            .default_point()
            .ok_or_else(|| refuse("no point is whole, undamaged, not suspicious and of this epoch".into()))?,
        PointChoice::LatestProven => state
            .default_points()
            .find(|p| p.proven.is_some())
            .ok_or_else(|| refuse("no point that may be taken without asking is proven".into()))?,
        PointChoice::At(moment) => {
            state.default_points().find(|p| p.stands_for().0 <= *moment).ok_or_else(|| {
                refuse(format!("no point that may be taken without asking is of {moment} or before"))
            })?
        }
        PointChoice::Id(text) => {
            let all: Vec<PointId> = state.points.iter().map(CommittedPoint::id).collect();
            let id = ids::find_short("point", text, &all).map_err(|error| refuse(error.to_string()))?;
            state.point(*id).ok_or_else(|| refuse(format!("point {id} is not in its ledger")))?
        }
    };
    Ok(Chosen {
        point: found.id(),
        replay: choice.replay(),
        flaws: flaws(found),
        warnings: warnings(state, found),
    })
}

/// How many points each kind of warning names.
const NAMED: usize = 3;

fn warnings(state: &GroupState, chosen: &CommittedPoint) -> Vec<String> {
    let live = |point: &&CommittedPoint| !point.expired && !point.superseded;
    let newer = state.points.iter().rev().filter(live).take_while(|point| point.number > chosen.number);
    let passed_over = newer.filter(|point| !point.flaws().is_empty()).take(NAMED).map(|point| {
        format!("point {} is newer and was passed over: {}", point.id().short(), flaws(point).join("; "))
    });
    // What somebody restored and checked behind it cleared it.
    let before = state.points.iter().rev().filter(live).skip_while(|point| point.number > chosen.number);
    let unproven = before.take_while(|point| point.proven.is_none()).skip(1);
    let suspicious = unproven.filter(|point| !point.said.suspicious.is_empty()).take(NAMED).map(|point| {
        format!(
            "point {} before it is suspicious ({}), and nothing since has been proven: what made it so may be in this one as well",
            point.id().short(),
            point.said.suspicious.join("; ")
        )
    });
    passed_over.chain(suspicious).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use farsite_model::rpo::{CaptureStamp, ClockSkew};
    use farsite_model::{CaptureTime, ItemKind, RunId, SiteName};
    use farsite_store::hex::Hex;
    use farsite_store::ledger::{Committed, EpochStart};

    fn at(second: i64) -> StoreTime {
        StoreTime(Timestamp::from_second(1_790_000_000 + second).unwrap())
    }

    fn point(n: u64, captured: i64) -> CommittedPoint {
        let stamp =
            CaptureStamp::at_commit(CaptureTime(at(captured).0), &[ClockSkew::ZERO], at(captured + 1));
        CommittedPoint {
            said: Committed {
                point: PointId::from_random((0xaa00 + n) << 48),
                epoch: Epoch(1),
                run: RunId::from_random(n),
                manifest: Hex([0; 32]),
                by_kind: BTreeMap::from([(ItemKind::Volume, stamp)]),
                whole: true,
                items: 1,
                weakest: Consistency::Crash,
                changed_bytes: 0,
                shipped_bytes: 0,
                suspicious: Vec::new(),
                timelines: Vec::new(),
            },
            number: n,
            committed: at(captured + 1),
            by: "north".into(),
            proven: None,
            held: false,
            expired: false,
            damaged: Vec::new(),
            damaged_packs: BTreeSet::new(),
            damage_is_known: false,
            superseded: false,
        }
    }

    /// Five points, oldest first: proven, good, then partial, damaged and suspicious ones.
    fn state() -> GroupState {
        let mut state = GroupState::new(GroupName::new("cloud").unwrap());
        state.epochs.push(EpochStart {
            epoch: Epoch(1),
            primary: SiteName::new("north").unwrap(),
            promotion: None,
            point: None,
            logs: Vec::new(),
            who: "ann".into(),
            begun: at(0),
            promoted: true,
            accepted: true,
        });
        state.points = (1..=5).map(|n| point(n, 100 * n as i64)).collect();
        state.points[0].proven = Some("drill".into());
        state.points[2].said.whole = false;
        state.points[3].damaged = vec!["packs/1".into()];
        state.points[4].said.suspicious = vec!["ransom".into()];
        state
    }

    fn chosen(state: &GroupState, choice: &PointChoice) -> u64 {
        let id = choose(state, choice, at(600)).unwrap().point;
        state.points.iter().position(|p| p.id() == id).unwrap() as u64 + 1
    }

    #[test]
    fn latest_is_the_newest_that_nothing_is_wrong_with() {
        let state = state();
        assert_eq!(chosen(&state, &PointChoice::Latest), 2);
        assert_eq!(chosen(&state, &PointChoice::LatestProven), 1);
        assert_eq!(chosen(&state, &PointChoice::At(at(250).0)), 2);
        assert_eq!(chosen(&state, &PointChoice::At(at(199).0)), 1);
        assert!(choose(&state, &PointChoice::At(at(50).0), at(600)).is_err());
    }

    #[test]
    fn a_named_point_is_taken_and_what_is_wrong_with_it_is_said() {
        let state = state();
        let named = choose(&state, &PointChoice::Id("aa05".into()), at(600)).unwrap();
        assert_eq!(named.flaws, ["suspicious: ransom"]);
        assert!(choose(&state, &PointChoice::Id("aa".into()), at(600)).is_err(), "several start like this");
    }

    #[test]
    fn what_was_passed_over_and_what_is_suspicious_before_it_is_said() {
        let mut state = state();
        let warned = |state: &GroupState, id: &str| {
            choose(state, &PointChoice::Id(id.into()), at(600)).unwrap().warnings.join("\n")
        };
        let latest = choose(&state, &PointChoice::Latest, at(600)).unwrap().warnings;
        assert_eq!(latest.len(), 3, "{latest:?}");
        assert!(latest[0].contains("passed over: suspicious: ransom"), "{latest:?}");
        state.points[2].said = Committed { whole: true, ..state.points[2].said.clone() };
        state.points[1].said.suspicious = vec!["mass delete".into()];
        assert!(warned(&state, "aa03").contains("before it is suspicious (mass delete)"));
        assert!(!warned(&state, "aa02").contains("before it"), "its own flaw is said as one");
        // A drill of the point itself has shown that it is good.
        state.points[2].proven = Some("drill".into());
        assert!(!warned(&state, "aa03").contains("before it"));
        state.points[2].proven = None;
        state.points[1].expired = true;
        assert!(!warned(&state, "aa03").contains("before it"));
    }

    #[test]
    fn a_refusal_lists_every_point_with_what_is_wrong_with_it() {
        let mut state = state();
        state.points.drain(..2);
        let text = choose(&state, &PointChoice::Latest, at(600)).unwrap_err().to_string();
        for part in ["partial", "packs/1", "ransom", "--point ID"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_point_of_an_ended_epoch_is_never_taken_by_itself() {
        let mut state = state();
        state.points.iter_mut().for_each(|p| p.superseded = true);
        for choice in [PointChoice::Latest, PointChoice::LatestLog, PointChoice::LatestProven] {
            assert!(choose(&state, &choice, at(600)).is_err());
        }
        let named = choose(&state, &PointChoice::Id("aa02".into()), at(600)).unwrap();
        assert!(named.flaws[0].contains("has ended"), "{:?}", named.flaws);
    }

    #[test]
    fn candidates_are_newest_first_and_name_the_default() {
        let list = candidates(&state(), at(600), 4);
        assert_eq!(list.len(), 4);
        assert_eq!(list.iter().map(|c| c.is_default).collect::<Vec<_>>(), [false, false, false, true]);
        assert!((list[3].exposure_s - 400.0).abs() < 1e-9, "{}", list[3].exposure_s);
    }

    #[test]
    fn words_ids_times_and_ages_name_a_point_and_nothing_else_does() {
        let now = at(0).0;
        assert_eq!(PointChoice::parse("latest-log", now), Ok(PointChoice::LatestLog));
        assert_eq!(PointChoice::parse("AA05", now), Ok(PointChoice::Id("aa05".into())));
        assert_eq!(PointChoice::parse("90s ago", now), Ok(PointChoice::At(at(-90).0)));
        let time = PointChoice::parse("2026-11-24T03:00:00Z", now).unwrap();
        assert_eq!(time.replay(), Replay::Until("2026-11-24T03:00:00Z".parse().unwrap()));
        assert!(PointChoice::parse("newest", now).unwrap_err().contains("latest-proven"));
    }
}
