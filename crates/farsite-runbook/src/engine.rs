//! Runs a plan, journaling every intent before its effect and every outcome after it; goes on where another driver was
//! killed; stops at once when another driver has taken over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::{Level, Mode};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::action::{Action, ActionContext, ActionError, Done, Lease, Outcome, People, Registry};
use crate::journal::{Journal, JournalEntry, JournalError, RunResult, StepStatus, What};
use crate::plan::{self, Plan, PlannedStep};
use crate::runbook::OnFailure;
use crate::state::RunState;

/// Time that a driver has beyond a step's own timeout to write the outcome down.
const GRACE: Duration = Duration::from_secs(2);
/// How often an open intent of another driver, or an unanswered gate, is looked at again.
const POLL: Duration = Duration::from_millis(300);

/// Why a run stopped without a result. The journal says how far it came; `--resume` goes on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("another driver has taken over ({by}); this one does nothing more")]
    TakenOver { by: String },
    #[error(
        "step {step} waits for {who}: {prompt}\n  hint: `farsite promotion confirm --step {step}`, then `--resume`"
    )]
    WaitingForPerson { step: String, who: String, prompt: String },
    #[error("interrupted; everything done so far is in the journal\n  hint: `--resume` goes on")]
    Interrupted,
    #[error(
        "step {step} was begun by a driver that vanished, and {action} cannot tell whether it is done; running it twice is not safe\n  hint: look for yourself, then `farsite promotion skip --step {step}` or begin anew"
    )]
    UnknownOutcome { step: String, action: String },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{0}")]
    Plan(String),
}

/// A person's decision about a failed step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Retry,
    Skip { who: String, reason: String },
    Stop,
}

/// Asked where a runbook says `on-failure: ask`.
#[async_trait]
pub trait Decider: Send + Sync {
    async fn decide(&self, step: &str, why: &str) -> Decision;
}

/// Nobody is there to ask: the answer was given beforehand.
pub struct Always(pub Decision);

#[async_trait]
impl Decider for Always {
    async fn decide(&self, _: &str, _: &str) -> Decision {
        self.0.clone()
    }
}

/// Sees every entry after it is durable: progress on a terminal, and the place where tests kill a driver.
pub trait Observer: Send + Sync {
    fn journaled(&self, number: u64, entry: &JournalEntry);
    /// A step is another driver's until `deadline`, and that one may still act: nothing happens here before.
    fn waits(&self, step: &str, driver: &str, deadline: Timestamp) {
        let _ = (step, driver, deadline);
    }
}
impl Observer for () {
    fn journaled(&self, _: u64, _: &JournalEntry) {}
}

/// What a run needs besides its plan.
#[derive(Clone)]
pub struct Run {
    pub registry: Registry,
    pub journal: Arc<dyn Journal>,
    pub observer: Arc<dyn Observer>,
    pub decider: Arc<dyn Decider>,
    pub people: Arc<dyn People>,
    pub mode: Mode,
    pub level: Level,
    /// Names and values for templates.
    pub variables: Value,
    /// Values that `when.set` looks at.
    pub plain_variables: BTreeMap<String, String>,
    /// This driver, in words: user, host, process.
    pub driver: String,
    pub cancel: CancellationToken,
}

/// The journal and this driver's view of it.
struct Book {
    state: RunState,
}

#[derive(Clone)]
struct Driver {
    run: Run,
    book: Arc<Mutex<Book>>,
}

impl Run {
    /// Runs the plan to its end, or on from where the journal ends.
    pub async fn execute(&self, plan: &Plan) -> Result<(RunResult, RunState), EngineError> {
        let driver = self.take_charge().await?;
        let result = driver.stages(plan).await?;
        driver
            .append(JournalEntry::Finished { result, driver: self.driver.clone(), at: Timestamp::now() })
            .await?;
        Ok((result, driver.state().await))
    }

    /// Undoes every completed step, last first.
    pub async fn roll_back(&self, plan: &Plan, result: RunResult) -> Result<RunState, EngineError> {
        let driver = self.take_charge().await?;
        let state = driver.state().await;
        // A step that failed or whose outcome is unknown may have left something: it is undone as well.
        let mut order: Vec<String> = state
            .steps
            .iter()
            .filter(|(id, s)| {
                !state.completed.contains(id)
                    && (s.unknown_outcome || matches!(s.status, StepStatus::Failed | StepStatus::TimedOut))
            })
            .map(|(id, _)| id.clone())
            .collect();
        order.extend(state.completed.iter().rev().cloned());
        let mut failed = false;
        for id in order {
            if let Some(step) = plan.steps.iter().find(|s| s.id == id) {
                failed |= !driver.undo(step).await?;
            }
        }
        let result = if failed { RunResult::Failed } else { result };
        driver
            .append(JournalEntry::Finished { result, driver: self.driver.clone(), at: Timestamp::now() })
            .await?;
        Ok(driver.state().await)
    }

    /// Reads the journal; waits out the deadline of another driver's open intents, then takes over.
    async fn take_charge(&self) -> Result<Driver, EngineError> {
        let mut entries = self.journal.read_from(0).await?;
        let mut told = None;
        loop {
            let state = RunState::fold(&entries);
            // A run that has ended has nobody to be taken over from.
            let foreign = state.driver.clone().filter(|d| *d != self.driver && state.finished.is_none());
            let longest = state.open_intents().max_by_key(|(_, open)| open.deadline);
            let wait_until = longest.map(|(_, open)| open.deadline);
            if let Some((step, open)) = longest.filter(|(_, open)| Timestamp::now() < open.deadline)
                && told != Some(open.deadline)
            {
                self.observer.waits(step, &open.driver, open.deadline);
                told = Some(open.deadline);
            }
            let driver =
                Driver { run: self.clone(), book: Arc::new(Mutex::new(Book { state: state.clone() })) };
            match (wait_until, foreign) {
                (Some(deadline), _) if Timestamp::now() < deadline => {
                    tokio::select! {
                        () = tokio::time::sleep(POLL) => {}
                        () = self.cancel.cancelled() => return Err(EngineError::Interrupted),
                    }
                    entries.extend(self.journal.read_from(state.next).await?);
                }
                (open, Some(from)) => {
                    let reason = if open.is_some() {
                        "its process is dead, or its step's time is over"
                    } else {
                        "resumed by another driver"
                    };
                    let takeover = JournalEntry::Takeover {
                        driver: self.driver.clone(),
                        from,
                        reason: reason.into(),
                        at: Timestamp::now(),
                    };
                    driver.append(takeover).await?;
                    return Ok(driver);
                }
                (_, None) => return Ok(driver),
            }
        }
    }
}

/// How one step ended, for the stage around it.
enum Ended {
    Well,
    Badly { goes_on: bool },
}

impl Driver {
    async fn state(&self) -> RunState {
        self.book.lock().await.state.clone()
    }

    /// Writes the next entry. Entries that people wrote in between (answers, skips, a wish to cancel) are taken in;
    /// those of another driver mean that this one was taken over.
    async fn append(&self, entry: JournalEntry) -> Result<(), EngineError> {
        let mut book = self.book.lock().await;
        loop {
            let number = book.state.next;
            match self.run.journal.append(number, &entry).await {
                Ok(()) => {
                    book.state.apply(number, &entry);
                    self.run.observer.journaled(number, &entry);
                    return Ok(());
                }
                Err(JournalError::Taken { .. }) => self.take_in(&mut book).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads what others wrote.
    async fn take_in(&self, book: &mut Book) -> Result<(), EngineError> {
        for (number, entry) in self.run.journal.read_from(book.state.next).await? {
            let by = match &entry {
                JournalEntry::Intent { driver, .. }
                | JournalEntry::Outcome { driver, .. }
                | JournalEntry::Takeover { driver, .. }
                | JournalEntry::Finished { driver, .. } => Some(driver.clone()),
                _ => None,
            };
            if let Some(by) = by.filter(|by| *by != self.run.driver) {
                return Err(EngineError::TakenOver { by });
            }
            book.state.apply(number, &entry);
        }
        Ok(())
    }

    async fn refresh(&self) -> Result<RunState, EngineError> {
        let mut book = self.book.lock().await;
        self.take_in(&mut book).await?;
        Ok(book.state.clone())
    }

    async fn stages(&self, plan: &Plan) -> Result<RunResult, EngineError> {
        for (index, (_, parallel)) in plan.stages.iter().enumerate() {
            let mut waiting: Vec<&PlannedStep> = plan.steps.iter().filter(|s| s.stage == index).collect();
            let mut running: JoinSet<(String, Result<Ended, EngineError>)> = JoinSet::new();
            let mut may_go_on = true;
            let mut stopped: Option<EngineError> = None;
            loop {
                let state = self.state().await;
                if state.cancelled.is_some() && stopped.is_none() {
                    self.run.cancel.cancel();
                }
                while running.len() < *parallel && stopped.is_none() && !self.run.cancel.is_cancelled() {
                    let ready = waiting.iter().position(|s| s.needs.iter().all(|n| settled(&state, plan, n)));
                    let Some(ready) = ready else { break };
                    let step = waiting.remove(ready).clone();
                    let driver = self.clone();
                    running.spawn(async move {
                        let ended = driver.step(&step).await;
                        (step.id, ended)
                    });
                }
                match running.join_next().await {
                    None => break,
                    Some(Ok((_, Ok(Ended::Well)))) => {}
                    Some(Ok((_, Ok(Ended::Badly { goes_on })))) => may_go_on &= goes_on,
                    // Siblings end what they have begun; nothing new starts.
                    Some(Ok((_, Err(error)))) => stopped = Some(stopped.unwrap_or(error)),
                    Some(Err(panic)) => {
                        stopped = Some(EngineError::Plan(format!("a step panicked: {panic}")));
                    }
                }
            }
            if let Some(error) = stopped {
                return Err(error);
            }
            if self.state().await.cancelled.is_some() {
                return Ok(RunResult::Cancelled);
            }
            if self.run.cancel.is_cancelled() {
                return Err(EngineError::Interrupted);
            }
            if !may_go_on || !waiting.is_empty() {
                return Ok(RunResult::Failed);
            }
        }
        Ok(RunResult::Completed)
    }

    fn left_out(&self, step: &PlannedStep) -> Option<String> {
        step.left_out(self.run.mode, self.run.level, &self.run.plain_variables)
    }

    async fn step(&self, step: &PlannedStep) -> Result<Ended, EngineError> {
        let state = self.state().await.step(&step.id);
        if matches!(state.status, StepStatus::Completed | StepStatus::Skipped) {
            return Ok(Ended::Well);
        }
        let now = Timestamp::now();
        if let Some(why) = self.left_out(step) {
            self.outcome(step, What::Do, 0, StepStatus::Skipped, Outcome::said(why), now).await?;
            return Ok(Ended::Well);
        }
        let action = self.run.registry.get(&step.action).cloned().ok_or_else(|| {
            EngineError::Plan(format!("action {} is not known to this version", step.action))
        })?;
        let with = plan::render(&step.with, &self.run.variables)
            .map_err(|why| EngineError::Plan(format!("step {}: {why}", step.id)))?;
        let mut unknown = state.unknown_outcome;
        let mut attempt = state.attempts;
        let mut attempts_left = step.attempts;
        loop {
            attempt += 1;
            attempts_left = attempts_left.saturating_sub(1);
            let lease = Lease::until(step.timeout + GRACE);
            let started = Timestamp::now();
            self.append(JournalEntry::Intent {
                step: step.id.clone(),
                what: What::Do,
                attempt,
                driver: self.run.driver.clone(),
                deadline: lease.deadline(),
            })
            .await?;
            let context = self.context(step, lease);
            let result = self.attempt(&*action, &context, &with, step, unknown).await?;
            // Frozen beyond the deadline: whoever took over owns this step now, and this driver says nothing.
            if lease.check().is_err() {
                self.refresh().await?;
            }
            let why = match result {
                Ok(outcome) => {
                    self.outcome(step, What::Do, attempt, StepStatus::Completed, outcome, started).await?;
                    return Ok(Ended::Well);
                }
                Err(ActionError::WaitingForPerson { who, prompt }) => {
                    let detail = Outcome::said(format!("{who}: {prompt}"));
                    self.outcome(step, What::Do, attempt, StepStatus::Waiting, detail, started).await?;
                    return Err(EngineError::WaitingForPerson { step: step.id.clone(), who, prompt });
                }
                Err(ActionError::Cancelled) => {
                    self.outcome(
                        step,
                        What::Do,
                        attempt,
                        StepStatus::Failed,
                        Outcome::said("cancelled"),
                        started,
                    )
                    .await?;
                    return Ok(Ended::Badly { goes_on: false });
                }
                Err(error) => error,
            };
            unknown = true;
            let status =
                if why == ActionError::LeaseLost { StepStatus::TimedOut } else { StepStatus::Failed };
            self.outcome(step, What::Do, attempt, status, Outcome::said(why.to_string()), started).await?;
            if attempts_left > 0 {
                tokio::time::sleep(step.backoff).await;
                continue;
            }
            match step.on_failure {
                OnFailure::Stop => return Ok(Ended::Badly { goes_on: false }),
                OnFailure::Continue => return Ok(Ended::Badly { goes_on: true }),
                OnFailure::Ask => match self.run.decider.decide(&step.id, &why.to_string()).await {
                    Decision::Retry => attempts_left = 1,
                    Decision::Stop => return Ok(Ended::Badly { goes_on: false }),
                    Decision::Skip { who, reason } => {
                        self.append(JournalEntry::Skipped {
                            step: step.id.clone(),
                            who,
                            reason,
                            at: Timestamp::now(),
                        })
                        .await?;
                        return Ok(Ended::Well);
                    }
                },
            }
        }
    }

    /// One attempt: the gate, then the check where an earlier outcome is unknown, then the effect.
    async fn attempt(
        &self,
        action: &dyn Action,
        context: &ActionContext,
        with: &Value,
        step: &PlannedStep,
        unknown: bool,
    ) -> Result<Result<Outcome, ActionError>, EngineError> {
        if let Some(gate) = &step.gate {
            match self.gate(context, gate).await? {
                Ok(true) => {}
                Ok(false) => return Ok(Err(ActionError::Failed(format!("{} said no", gate.who)))),
                Err(error) => return Ok(Err(error)),
            }
        }
        let work = async {
            if unknown {
                match action.check(context, with).await? {
                    Done::Yes(how) => return Ok(Ok(Outcome::said(format!("already done: {how}")))),
                    Done::No => {}
                    Done::Unknown if action.idempotent() => {}
                    Done::Unknown => return Ok(Err(())),
                }
            }
            context.lease.check()?;
            action.run(context, with).await.map(Ok)
        };
        let result = tokio::select! {
            result = tokio::time::timeout(context.timeout, work) => result,
            () = context.cancel.cancelled() => return Ok(Err(ActionError::Cancelled)),
        };
        Ok(match result {
            Err(_) => Err(ActionError::Failed(format!("no end within {}s", context.timeout.as_secs()))),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Ok(outcome))) => Ok(outcome),
            Ok(Ok(Err(()))) => {
                return Err(EngineError::UnknownOutcome {
                    step: step.id.clone(),
                    action: step.action.clone(),
                });
            }
        })
    }

    /// Waits for a person: on the terminal, or for an answer that `promotion confirm` puts into the journal.
    async fn gate(
        &self,
        context: &ActionContext,
        gate: &crate::runbook::Gate,
    ) -> Result<Result<bool, ActionError>, EngineError> {
        let give_up =
            Timestamp::now() + jiff::SignedDuration::try_from(gate.timeout.duration()).unwrap_or_default();
        loop {
            let state = self.refresh().await?;
            if let Some((answer, _)) = state.step(&context.step).gate {
                return Ok(Ok(answer));
            }
            match self.run.people.answer(&context.step, &gate.who, &gate.prompt).await {
                Ok(Some(answer)) => {
                    self.append(JournalEntry::Gate {
                        step: context.step.clone(),
                        answer,
                        who: gate.who.clone(),
                        at: Timestamp::now(),
                    })
                    .await?;
                    return Ok(Ok(answer));
                }
                Ok(None) if !self.run.people.waits() => {
                    return Ok(Err(ActionError::WaitingForPerson {
                        who: gate.who.clone(),
                        prompt: gate.prompt.clone(),
                    }));
                }
                Ok(None) => {}
                Err(error) => return Ok(Err(error)),
            }
            if Timestamp::now() >= give_up {
                return Ok(match gate.default {
                    Some(answer) => Ok(answer),
                    None => Err(ActionError::Failed(format!(
                        "{} did not answer within {}",
                        gate.who, gate.timeout
                    ))),
                });
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = context.cancel.cancelled() => return Ok(Err(ActionError::Cancelled)),
            }
        }
    }

    /// Undoes one step; false when that failed (the rest is undone all the same).
    async fn undo(&self, step: &PlannedStep) -> Result<bool, EngineError> {
        let lease = Lease::until(step.timeout + GRACE);
        let started = Timestamp::now();
        let (name, with) = step.undo.clone().unwrap_or_else(|| (step.action.clone(), step.with.clone()));
        let Some(action) = self.run.registry.get(&name).cloned() else {
            return Err(EngineError::Plan(format!("action {name} is not known to this version")));
        };
        let with = plan::render(&with, &self.run.variables)
            .map_err(|why| EngineError::Plan(format!("undo of step {}: {why}", step.id)))?;
        self.append(JournalEntry::Intent {
            step: step.id.clone(),
            what: What::Undo,
            attempt: 1,
            driver: self.run.driver.clone(),
            deadline: lease.deadline(),
        })
        .await?;
        let context = self.context(step, lease);
        let work = async {
            if step.undo.is_some() {
                action.run(&context, &with).await
            } else {
                action.undo(&context, &with).await
            }
        };
        let (status, outcome) = match tokio::time::timeout(step.timeout, work).await {
            Ok(Ok(outcome)) => (StepStatus::Undone, outcome),
            Ok(Err(error)) => (StepStatus::Failed, Outcome::said(format!("undo failed: {error}"))),
            Err(_) => (StepStatus::TimedOut, Outcome::said("undo did not end in time")),
        };
        self.outcome(step, What::Undo, 1, status, outcome, started).await?;
        Ok(status == StepStatus::Undone)
    }

    fn context(&self, step: &PlannedStep, lease: Lease) -> ActionContext {
        ActionContext {
            step: step.id.clone(),
            mode: self.run.mode,
            level: self.run.level,
            lease,
            timeout: step.timeout,
            cancel: self.run.cancel.clone(),
            people: self.run.people.clone(),
        }
    }

    async fn outcome(
        &self,
        step: &PlannedStep,
        what: What,
        attempt: u32,
        status: StepStatus,
        outcome: Outcome,
        started: Timestamp,
    ) -> Result<(), EngineError> {
        self.append(JournalEntry::Outcome {
            step: step.id.clone(),
            what,
            attempt,
            driver: self.run.driver.clone(),
            status,
            detail: outcome.detail,
            evidence: outcome.evidence,
            started,
            ended: Timestamp::now(),
        })
        .await
    }
}

/// A dependency that no longer holds anybody up: done, skipped, or failed where that is no hindrance. One that is left out of the
/// run is skipped once its own dependencies are settled, so that what comes behind it still waits for those.
fn settled(state: &RunState, plan: &Plan, id: &str) -> bool {
    match state.step(id).status {
        StepStatus::Completed | StepStatus::Skipped => true,
        StepStatus::Failed | StepStatus::TimedOut => {
            plan.steps.iter().any(|s| s.id == id && s.on_failure == OnFailure::Continue)
        }
        _ => false,
    }
}
