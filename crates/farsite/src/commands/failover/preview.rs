//! What a failover would take and lose, shown before it is asked for; and the whole plan for `--dry-run`.

use farsite_model::{GroupName, Level, SiteName};
use farsite_promote::Standby;
use farsite_promote::choose::{self, Candidate, Chosen};
use farsite_promote::dry_run::DryRun;
use farsite_promote::order::Order;
use farsite_store::ledger::{self, Ledger};

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Tone, seconds};
use crate::stores;

/// Points that are shown for each group.
const SHOWN: usize = 5;

/// Each group of the site with its points and the one that the order takes.
pub struct Preview {
    from: SiteName,
    groups: Vec<GroupPreview>,
}

struct GroupPreview {
    group: GroupName,
    candidates: Vec<Candidate>,
    chosen: Chosen,
    exposure_s: f64,
    target_s: Option<f64>,
}

impl Preview {
    pub async fn of(standby: &Standby, order: &Order) -> Result<Self, Failure> {
        if order.from == standby.site {
            return Err(Failure::usage(format!(
                "{} cannot fail over to itself: --site names the site that is lost",
                order.from
            )));
        }
        let now = standby.store.now().await?;
        let known = ledger::groups(&standby.store).await?;
        if let Some(unknown) = order.groups.iter().find(|wanted| !known.contains(wanted)) {
            return Err(stores::no_group(unknown.as_str(), &known));
        }
        let policies = stores::policies(&standby.config)?;
        let mut groups = Vec::new();
        for group in known.into_iter().filter(|group| order.groups.is_empty() || order.groups.contains(group))
        {
            let ledger = Ledger::open(&standby.store, &group).await?;
            let state = ledger.state();
            if state.primary() != Some(&order.from) {
                continue;
            }
            let chosen = choose::choose(state, &order.point, now)
                .map_err(|none| Failure::refused(format!("nothing was changed: {none}")))?;
            let exposure_s = state.point(chosen.point).map_or(0.0, |point| point.exposure(now).as_secs_f64());
            let policy = policies.iter().find(|policy| policy.group == group);
            groups.push(GroupPreview {
                candidates: choose::candidates(state, now, SHOWN),
                target_s: policy.map(|policy| policy.rpo.duration().as_secs_f64()),
                group,
                chosen,
                exposure_s,
            });
        }
        Ok(Self { from: order.from.clone(), groups })
    }

    /// A person named a point with which something is wrong.
    pub fn is_flawed(&self) -> bool {
        self.groups.iter().any(|group| !group.chosen.flaws.is_empty())
    }

    pub fn show(&self, context: &Context) {
        let out = context.out;
        if out.json {
            return;
        }
        for group in &self.groups {
            out.line(format!("group {}", out.paint(Tone::Strong, group.group.as_str())));
            candidates(&group.candidates, group.chosen.point, context);
            let target = group.target_s.map_or_else(String::new, |target| {
                let verdict = if group.exposure_s > target { "MISSED" } else { "met" };
                format!(", target {} ({verdict})", seconds(target))
            });
            out.line(format!("  expected loss: up to {} by now{target}", seconds(group.exposure_s)));
            for flaw in &group.chosen.flaws {
                out.line(format!("  {} the point that you named is {flaw}", out.paint(Tone::Warn, "!")));
            }
            warnings(&group.chosen.warnings, context);
        }
    }

    pub fn question(&self, to: &SiteName, level: Level) -> String {
        let groups: Vec<String> = self
            .groups
            .iter()
            .map(|group| format!("{} from point {}", group.group, group.chosen.point.short()))
            .collect();
        let flawed = if self.is_flawed() { " Something is wrong with the chosen point." } else { "" };
        format!("Promote {to} in place of {} at level {level}: {}?{flawed}", self.from, groups.join(", "))
    }
}

fn candidates(candidates: &[Candidate], chosen: farsite_model::PointId, context: &Context) {
    let rows: Vec<Vec<String>> = candidates
        .iter()
        .map(|one| {
            let mut notes = one.flaws.clone();
            if one.is_default {
                notes.insert(0, "taken by default".to_owned());
            }
            vec![
                if one.point == chosen { "  →" } else { "" }.to_owned(),
                one.point.short(),
                format!("{:.0}", one.stands_for.0),
                seconds(one.exposure_s),
                one.items.to_string(),
                one.weakest.to_string(),
                if one.proven.is_some() { "yes" } else { "no" }.to_owned(),
                notes.join("; "),
            ]
        })
        .collect();
    context
        .out
        .table(&["", "point", "stands for", "exposure", "items", "consistency", "proven", "notes"], &rows);
}

fn warnings(warnings: &[String], context: &Context) {
    for warning in warnings {
        context.out.line(format!("  {} {warning}", context.out.paint(Tone::Warn, "!")));
    }
}

/// Where what a step says begins.
const STEP_INDENT: usize = 40;

/// Further lines of a sentence, below its first one.
fn indented(text: &str, by: usize) -> String {
    let pause = format!("\n{}", " ".repeat(by));
    text.lines().map(str::trim_end).collect::<Vec<_>>().join(&pause)
}

/// The plan of a dry run.
pub fn show_plan(plan: &DryRun, context: &Context) {
    let out = context.out;
    if out.json {
        return out.json(plan);
    }
    out.line(format!("{} → {} at level {}, runbook {}", plan.from, plan.to, plan.level, plan.runbook));
    let (bad, warn) = (out.paint(Tone::Bad, "✗"), out.paint(Tone::Warn, "!"));
    for problem in &plan.problems {
        out.line(format!("{bad} {}", indented(problem, 2)));
    }
    for note in &plan.notes {
        out.line(format!("{warn} {}", indented(note, 2)));
    }
    for group in &plan.groups {
        out.line(format!("group {}", out.paint(Tone::Strong, group.group.as_str())));
        candidates(&group.candidates, group.point, context);
        if let Some(expected) = &group.expected_rpo {
            let target = group.rpo_target_s.map_or_else(String::new, |s| format!(", target {}", seconds(s)));
            out.line(format!(
                "  RPO if it were done now: {} to {}{target}",
                seconds(expected.total.at_least_s),
                seconds(expected.total.at_most_s)
            ));
        }
        for problem in group.problems.iter().chain(&group.flaws) {
            out.line(format!("  {bad} {}", indented(problem, 4)));
        }
        for note in &group.notes {
            out.line(format!("  {warn} {}", indented(note, 4)));
        }
        warnings(&group.warnings, context);
        let mut stage = "";
        let mut total_s = 0.0;
        for step in &group.steps {
            if step.stage != stage {
                stage = &step.stage;
                out.line(format!("  {stage}"));
            }
            if let Some(why) = &step.left_out {
                out.line(format!("    - {:<24} {why}", step.id));
                continue;
            }
            let (mark, says) = match &step.precondition {
                Ok(says) => (out.paint(Tone::Good, "✓"), says),
                Err(says) => (bad.clone(), says),
            };
            total_s += step.expected_s.unwrap_or(0.0);
            let took = step.expected_s.map_or_else(|| "?".to_owned(), seconds);
            let asks = step.asks.as_ref().map_or_else(String::new, |who| format!("; asks {who}"));
            out.line(format!("    {mark} {:<24} {took:>7}  {}{asks}", step.id, indented(says, STEP_INDENT)));
            for note in &step.notes {
                out.line(format!("{:STEP_INDENT$}{warn} {}", "", indented(note, STEP_INDENT + 2)));
            }
        }
        let target = group.rto_target_s.map_or_else(String::new, |s| format!(", RTO target {}", seconds(s)));
        if total_s > 0.0 {
            out.line(format!("  about {} by earlier runs{target}", seconds(total_s)));
        }
    }
    if plan.is_clear() {
        let notes = match plan.notes() {
            0 => String::new(),
            1 => " of what was looked at (read the line with !)".to_owned(),
            many => format!(" of what was looked at (read the {many} lines with !)"),
        };
        out.line(format!(
            "{} nothing{notes} stands in the way; nothing was changed",
            out.paint(Tone::Good, "✓")
        ));
    } else {
        out.line("Nothing was changed.");
    }
}
