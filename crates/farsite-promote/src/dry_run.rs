//! `--dry-run`: an order comes in; everything that it would do, and everything that would stand in its way, goes
//! out. Changes nothing, not even in the ledger.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::{GroupName, Level, Mode, PointId, SiteName};
use farsite_replicate::connect;
use farsite_runbook::action::{ActionContext, Lease};
use farsite_runbook::plan::render;
use farsite_store::ledger::SiteLedger;
use farsite_store::read::ReadStats;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::choose::{Candidate, candidates};
use crate::failover::find_groups;
use crate::group_run::GroupRun;
use crate::list::past_durations;
use crate::order::Order;
use crate::people::Nobody;
use crate::place::Targets;
use crate::promises::{Promises, promises};
use crate::rpo::{self, Achieved};
use crate::runbooks::{self, Bundle};
use crate::survey::accepted_logs;
use crate::{PromoteError, Standby, cloud, encrypted, room};

/// How many candidates are shown.
const SHOWN: usize = 10;
/// How long the preconditions of one step may take to look at.
const STEP_LIMIT: Duration = Duration::from_mins(1);
/// Between a program's limit and its step's.
const PROGRAM_GRACE: Duration = Duration::from_secs(5);

/// What an order would do.
#[derive(Debug, Clone, Serialize)]
pub struct DryRun {
    pub from: SiteName,
    pub to: SiteName,
    pub level: Level,
    pub runbook: String,
    pub groups: Vec<GroupPlan>,
    /// What stands in the way of the order as a whole.
    pub problems: Vec<String>,
    /// What could not be looked at.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct GroupPlan {
    pub group: GroupName,
    pub candidates: Vec<Candidate>,
    pub point: PointId,
    /// What is wrong with the point that a person named.
    pub flaws: Vec<String>,
    /// What a person should know who takes it.
    pub warnings: Vec<String>,
    /// What would be lost if the order were given now.
    pub expected_rpo: Option<Achieved>,
    pub rpo_target_s: Option<f64>,
    pub rto_target_s: Option<f64>,
    pub steps: Vec<StepPlan>,
    pub problems: Vec<String>,
    /// What could not be looked at.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct StepPlan {
    pub stage: String,
    pub id: String,
    pub action: String,
    /// Why it is not part of this run.
    pub left_out: Option<String>,
    /// Median of earlier runs, drills included.
    pub expected_s: Option<f64>,
    /// What its preconditions say, or what is wrong with them.
    pub precondition: Result<String, String>,
    /// What could not be looked at, and what a person should know.
    pub notes: Vec<String>,
    /// Who is asked before it begins.
    pub asks: Option<String>,
}

impl DryRun {
    /// Nothing stands in the way.
    pub fn is_clear(&self) -> bool {
        self.problems.is_empty()
            && self.groups.iter().all(|g| {
                g.problems.is_empty()
                    && g.steps.iter().all(|s| s.left_out.is_some() || s.precondition.is_ok())
            })
    }

    /// How much was not looked at, or has to be known.
    pub fn notes(&self) -> usize {
        let of_group = |g: &GroupPlan| g.notes.len() + g.steps.iter().map(|s| s.notes.len()).sum::<usize>();
        self.notes.len() + self.groups.iter().map(of_group).sum::<usize>()
    }
}

/// Evaluates every precondition against the real standby.
pub async fn dry_run(standby: &Standby, order: &Order) -> Result<DryRun, PromoteError> {
    let found = find_groups(standby, order, None).await?;
    let bundle = runbooks::find(&standby.config, order.level, order.runbook.as_deref())?;
    let name = bundle.plan(&crate::registry_for_checks())?.name;
    let mut problems = Vec::new();
    let site = SiteLedger::open(&standby.store, &order.from).await?;
    if let Some(open) = site.state().open_promotion() {
        problems.push(format!("promotion {} of {} is open since {}", open.id(), order.from, open.at));
    }
    if let Err(why) = order.fencing() {
        problems.push(why.to_string());
    }
    if let Ok(store) = connect::store_config(&standby.config, &standby.site) {
        problems.extend(room::of_store(&store.url));
    }
    let mut notes = Vec::new();
    match cloud::answers(&standby.config, &standby.site).await {
        Ok(said) => notes.extend(said),
        Err(why) => problems.push(why),
    }
    let mut groups = Vec::new();
    for f in &found {
        let Promises { rpo_s, rto_s, .. } = promises(&standby.config, &f.group);
        let mut plan = GroupPlan {
            group: f.group.clone(),
            candidates: candidates(&f.survey.state(), f.survey.now, SHOWN),
            point: f.chosen.point,
            flaws: f.chosen.flaws.clone(),
            warnings: f.chosen.warnings.clone(),
            expected_rpo: None,
            rpo_target_s: rpo_s,
            rto_target_s: rto_s,
            steps: Vec::new(),
            problems: Vec::new(),
            notes: Vec::new(),
        };
        let targets = match Targets::real(&standby.config, &f.group, order.promotion) {
            Ok(targets) => targets,
            Err(why) => {
                plan.problems.push(why.to_string());
                groups.push(plan);
                continue;
            }
        };
        let manifest = f.survey.manifest(standby, f.chosen.point).await?;
        plan.problems.extend(targets.missing(&manifest));
        let logs = accepted_logs(standby, &f.group, &f.survey.point(f.chosen.point)?, &order.from).await?;
        let stamps = rpo::stamps(&standby.store, &manifest, &logs, f.chosen.replay).await?;
        let seen = rpo::last_sign_of_life(&standby.store, &f.survey.ledger, u64::MAX, &logs).await?;
        plan.expected_rpo =
            Some(rpo::achieved(&stamps, seen.unwrap_or(f.survey.now), f.survey.now, order.disaster_at));
        let run = Arc::new(GroupRun {
            standby: standby.clone(),
            promotion: order.promotion,
            group: f.group.clone(),
            from: order.from.clone(),
            mode: Mode::Failover,
            level: order.level,
            term: f.survey.ledger.state().epoch().next(),
            point: f.chosen.point,
            manifest,
            logs,
            replay: f.chosen.replay,
            targets,
            stats: ReadStats::default(),
        });
        for found in [room::look(&run).await, encrypted::look(&run.manifest)] {
            plan.problems.extend(found.problems);
            plan.notes.extend(found.notes);
        }
        plan.steps = steps(&run, &bundle).await?;
        groups.push(plan);
    }
    Ok(DryRun {
        from: order.from.clone(),
        to: standby.site.clone(),
        level: order.level,
        runbook: name,
        groups,
        problems,
        notes,
    })
}

async fn steps(run: &Arc<GroupRun>, bundle: &Bundle) -> Result<Vec<StepPlan>, PromoteError> {
    let (registry, plan) = run.plan(bundle)?;
    let (variables, plain) = run.variables(&plan, &run.targets.variables)?;
    let expected: BTreeMap<String, f64> = past_durations(&run.standby, &run.group).await?;
    let mut steps = Vec::new();
    for step in &plan.steps {
        let left_out = step.left_out(run.mode, run.level, &plain);
        let mut notes = Vec::new();
        let precondition = match (&left_out, registry.get(&step.action)) {
            (Some(_), _) => Ok("not part of this run".to_owned()),
            (None, None) => Err(format!("action {} is not known", step.action)),
            (None, Some(action)) => match render(&step.with, &variables) {
                Err(why) => Err(why),
                Ok(with) => {
                    let context = ActionContext {
                        step: step.id.clone(),
                        mode: run.mode,
                        level: run.level,
                        lease: Lease::until(STEP_LIMIT),
                        // A program is ended by its own limit, before nobody waits for it any more.
                        timeout: step.timeout.min(STEP_LIMIT.saturating_sub(PROGRAM_GRACE)),
                        cancel: CancellationToken::new(),
                        people: Arc::new(Nobody),
                    };
                    match tokio::time::timeout(STEP_LIMIT, action.dry_run(&context, &with)).await {
                        Ok(said) => said
                            .map(|foreseen| {
                                notes = foreseen.notes;
                                foreseen.says
                            })
                            .map_err(|error| error.to_string()),
                        Err(_) => Err(format!("no answer within {}s", STEP_LIMIT.as_secs())),
                    }
                }
            },
        };
        steps.push(StepPlan {
            stage: plan.stages.get(step.stage).map(|(name, _)| name.clone()).unwrap_or_default(),
            id: step.id.clone(),
            action: step.action.clone(),
            left_out,
            expected_s: expected.get(&step.id).copied(),
            precondition,
            notes,
            asks: step.gate.as_ref().map(|gate| gate.who.clone()),
        });
    }
    Ok(steps)
}
