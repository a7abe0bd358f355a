//! A runbook, checked: includes resolved, ids unique, actions and variables known, no cycle, everything undoable
//! that a drill must undo. Errors point at line and column.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use farsite_model::nearest::did_you_mean;
use farsite_model::quantity::Span;
use farsite_model::yaml::{At, Source, YamlError};
use farsite_model::{Level, Mode};
use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graph::DiGraph;
use serde_json::Value;

use crate::action::Registry;
use crate::runbook::{Gate, OnFailure, Runbook, Runs, Step, Undo};

/// One step of a plan.
#[derive(Debug, Clone)]
pub struct PlannedStep {
    pub id: String,
    pub action: String,
    pub with: Value,
    pub needs: Vec<String>,
    pub timeout: Duration,
    pub attempts: u32,
    pub backoff: Duration,
    pub on_failure: OnFailure,
    pub gate: Option<Gate>,
    pub undo: Option<(String, Value)>,
    pub stage: usize,
    modes: Vec<Mode>,
    levels: Vec<Level>,
    runs: Runs,
    set: Option<String>,
}

impl PlannedStep {
    /// Why the step is not part of this run; `None` when it is.
    pub fn left_out(&self, mode: Mode, level: Level, variables: &BTreeMap<String, String>) -> Option<String> {
        match self.runs {
            Runs::DrillOnly if mode != Mode::Drill => return Some("runs in drills only".into()),
            Runs::RealOnly if mode == Mode::Drill => return Some("does not run in drills".into()),
            _ => {}
        }
        if !self.modes.is_empty() && !self.modes.contains(&mode) {
            return Some(format!("not part of mode {mode}"));
        }
        if !self.levels.is_empty() && !self.levels.contains(&level) {
            return Some(format!("not part of level {level}"));
        }
        match &self.set {
            Some(name) if variables.get(name).is_none_or(String::is_empty) => {
                Some(format!("variable {name} is empty: nothing to do here"))
            }
            _ => None,
        }
    }
}

/// A checked runbook, includes first.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: String,
    pub description: String,
    /// Defaults, the including runbook's before the included one's.
    pub variables: BTreeMap<String, String>,
    pub stages: Vec<(String, usize)>,
    /// In an order in which every step stands behind what it needs.
    pub steps: Vec<PlannedStep>,
}

/// A runbook's file name and text: what includes are looked up from.
pub trait Library {
    fn find(&self, name: &str) -> Option<(String, String)>;
    fn names(&self) -> Vec<String>;
}

impl Library for BTreeMap<String, String> {
    fn find(&self, name: &str) -> Option<(String, String)> {
        self.get(name).map(|text| (format!("{name}.yaml"), text.clone()))
    }
    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

/// Reads and checks a runbook with all that it includes.
pub fn plan(file: &str, text: &str, library: &dyn Library, registry: &Registry) -> Result<Plan, YamlError> {
    let mut chain = Vec::new();
    collect(file.to_owned(), text.to_owned(), library, &mut chain)?;
    // Included runbooks come first.
    chain.reverse();
    let mut plan = Plan {
        name: String::new(),
        description: String::new(),
        variables: BTreeMap::new(),
        stages: Vec::new(),
        steps: Vec::new(),
    };
    let mut places: BTreeMap<String, (String, String)> = BTreeMap::new();
    let built_in = ["place", "promotion", "mode", "level", "group", "site", "from", "to"];
    for (file, text, book) in &chain {
        plan.name.clone_from(&book.name);
        plan.description.clone_from(&book.description);
        plan.variables.extend(book.variables.clone());
        for stage in &book.stages {
            let index = plan.stages.len();
            if stage.parallel == 0 {
                return Err(Source { file, text }
                    .whole(format!("stage {}: `parallel` must be at least 1", stage.name), None));
            }
            plan.stages.push((stage.name.clone(), stage.parallel));
            for step in &stage.steps {
                let known: Vec<&str> =
                    built_in.iter().copied().chain(plan.variables.keys().map(String::as_str)).collect();
                let planned = checked(file, text, step, index, registry, &known)?;
                if let Some((other, _)) = places.get(&planned.id) {
                    let why = format!("step {:?} stands here twice (also in {other})", planned.id);
                    return Err(Source { file, text }.error(&step.id, why, None));
                }
                places.insert(planned.id.clone(), (file.clone(), text.clone()));
                plan.steps.push(planned);
            }
        }
    }
    check_needs(&chain, &plan)?;
    plan.steps = ordered(&chain, plan.steps)?;
    Ok(plan)
}

type Chained = (String, String, Runbook);

fn collect(
    file: String,
    text: String,
    library: &dyn Library,
    chain: &mut Vec<Chained>,
) -> Result<(), YamlError> {
    let book = Runbook::parse(&file, &text)?;
    let include = book.include.clone();
    if let Some(name) = &include {
        if chain.iter().any(|(_, _, b)| b.name == **name) || book.name == **name {
            return Err(Source { file: &file, text: &text }.error(
                name,
                format!("{name} includes itself"),
                None,
            ));
        }
        let Some((next_file, next_text)) = library.find(name) else {
            let known = library.names();
            let why = format!(
                "no runbook is called {:?}{}",
                name.value,
                did_you_mean(name, known.iter().map(String::as_str))
            );
            return Err(Source { file: &file, text: &text }.error(name, why, None));
        };
        chain.push((file, text, book));
        return collect(next_file, next_text, library, chain);
    }
    chain.push((file, text, book));
    Ok(())
}

fn checked(
    file: &str,
    text: &str,
    step: &Step,
    stage: usize,
    registry: &Registry,
    variables: &[&str],
) -> Result<PlannedStep, YamlError> {
    let at = |place: &At<String>, why: String| Source { file, text }.error(place, why, None);
    let find = |name: &str| {
        registry.get(name).ok_or_else(|| {
            at(&step.action, format!("no action is called {name:?}{}", did_you_mean(name, registry.names())))
        })
    };
    let action = find(&step.action)?;
    action
        .validate(&step.with)
        .map_err(|why| Source { file, text }.error(&step.with, format!("{}: {why}", step.action), None))?;
    for name in templates(&step.with).map_err(|why| Source { file, text }.error(&step.with, why, None))? {
        if !variables.contains(&name.as_str()) {
            let why =
                format!("variable {name:?} is not known{}", did_you_mean(&name, variables.iter().copied()));
            return Err(Source { file, text }.error(
                &step.with,
                why,
                Some("declare it under `variables:`".into()),
            ));
        }
    }
    if let Some(name) = &step.when.set
        && !variables.contains(&name.as_str())
    {
        return Err(at(
            &step.id,
            format!(
                "`when.set`: variable {name:?} is not known{}",
                did_you_mean(name, variables.iter().copied())
            ),
        ));
    }
    let undo = match &step.undo {
        Some(Undo::Action(undo)) => {
            find(&undo.action)?.validate(&undo.with).map_err(|why| at(&step.id, format!("undo: {why}")))?;
            Some((undo.action.clone(), undo.with.clone()))
        }
        Some(Undo::Nothing(_)) | None => None,
    };
    if step.undo.is_none() && !action.undoable() && step.runs != Runs::RealOnly {
        let hint = "say `undo: none`, name an action that undoes it, or let it run `real-only`".to_owned();
        let why = format!("step {:?} runs in drills and {} cannot be undone", step.id.value, step.action);
        return Err(Source { file, text }.error(&step.id, why, Some(hint)));
    }
    // A gate waits for its person within the step's own time.
    let own = step.timeout.map_or_else(|| action.default_timeout(), Span::duration);
    let timeout = own + step.gate.as_ref().map_or(Duration::ZERO, |g| g.timeout.duration());
    Ok(PlannedStep {
        id: step.id.value.clone(),
        action: step.action.value.clone(),
        with: step.with.value.clone(),
        needs: step.needs.iter().map(|n| n.value.clone()).collect(),
        timeout,
        attempts: step.retry.count + 1,
        backoff: step.retry.backoff.duration(),
        on_failure: step.on_failure,
        gate: step.gate.clone(),
        undo,
        stage,
        modes: step.when.mode.clone(),
        levels: step.when.level.clone(),
        runs: step.runs,
        set: step.when.set.clone(),
    })
}

/// Names of the variables that the strings of a value use.
fn templates(value: &Value) -> Result<BTreeSet<String>, String> {
    let mut names = BTreeSet::new();
    let mut stack = vec![value];
    while let Some(value) = stack.pop() {
        match value {
            Value::String(text) if text.contains("{{") || text.contains("{%") => {
                let environment = minijinja::Environment::new();
                let template = environment.template_from_str(text).map_err(|e| format!("{text:?}: {e}"))?;
                names.extend(template.undeclared_variables(false));
            }
            Value::Array(items) => stack.extend(items),
            Value::Object(map) => stack.extend(map.values()),
            _ => {}
        }
    }
    Ok(names)
}

fn every_step(chain: &[Chained]) -> impl Iterator<Item = (&str, &str, &Step)> {
    chain.iter().flat_map(|(file, text, book)| {
        book.stages
            .iter()
            .flat_map(move |stage| stage.steps.iter().map(move |step| (file.as_str(), text.as_str(), step)))
    })
}

fn check_needs(chain: &[Chained], plan: &Plan) -> Result<(), YamlError> {
    let stage_of: BTreeMap<&str, usize> = plan.steps.iter().map(|s| (s.id.as_str(), s.stage)).collect();
    for (file, text, step) in every_step(chain) {
        for need in &step.needs {
            let Some(stage) = stage_of.get(need.as_str()) else {
                let why = format!(
                    "no step is called {:?}{}",
                    need.value,
                    did_you_mean(need, stage_of.keys().copied())
                );
                return Err(Source { file, text }.error(need, why, None));
            };
            if *stage > stage_of[step.id.as_str()] {
                let why =
                    format!("{:?} needs {:?}, which stands in a later stage", step.id.value, need.value);
                return Err(Source { file, text }.error(need, why, None));
            }
        }
    }
    Ok(())
}

fn ordered(chain: &[Chained], steps: Vec<PlannedStep>) -> Result<Vec<PlannedStep>, YamlError> {
    let mut graph: DiGraph<usize, ()> = DiGraph::new();
    let nodes: Vec<_> = (0..steps.len()).map(|i| graph.add_node(i)).collect();
    let index: BTreeMap<&str, usize> = steps.iter().enumerate().map(|(i, s)| (s.id.as_str(), i)).collect();
    for (i, step) in steps.iter().enumerate() {
        for need in &step.needs {
            graph.add_edge(nodes[index[need.as_str()]], nodes[i], ());
        }
    }
    if toposort(&graph, None).is_ok() {
        // Stages in order, and within one the file's order, moved only as far as dependencies demand: equal runs
        // are equal.
        let mut placed: BTreeSet<String> = BTreeSet::new();
        let mut rest = steps;
        let mut order = Vec::with_capacity(rest.len());
        while !rest.is_empty() {
            let stage = rest.iter().map(|s| s.stage).min().unwrap_or(0);
            let next = rest
                .iter()
                .position(|s| s.stage == stage && s.needs.iter().all(|n| placed.contains(n)))
                .expect("an acyclic graph whose needs point backwards always has a next step");
            let step = rest.remove(next);
            placed.insert(step.id.clone());
            order.push(step);
        }
        return Ok(order);
    }
    let cycle = tarjan_scc(&graph)
        .into_iter()
        .find(|c| c.len() > 1 || graph.find_edge(c[0], c[0]).is_some())
        .unwrap_or_default();
    let mut names: Vec<&str> = cycle.iter().map(|n| steps[graph[*n]].id.as_str()).collect();
    names.sort_by_key(|name| index[name]);
    let (file, text, step) = every_step(chain)
        .find(|(_, _, s)| names.contains(&s.id.as_str()))
        .expect("a cycle is made of steps that stand in a file");
    let path = names.iter().chain(names.first()).copied().collect::<Vec<_>>().join(" → ");
    Err(Source { file, text }.error(&step.id, format!("these steps need each other: {path}"), None))
}

/// A step's parameters with all templates filled in; an undefined variable is an error.
pub fn render(with: &Value, variables: &Value) -> Result<Value, String> {
    let mut environment = minijinja::Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    fn fill(
        environment: &minijinja::Environment<'_>,
        value: &Value,
        variables: &Value,
    ) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) if text.contains("{{") || text.contains("{%") => Value::String(
                environment
                    .render_str(text, minijinja::value::Serde(variables))
                    .map_err(|e| format!("{text:?}: {e}"))?,
            ),
            Value::Array(items) => {
                Value::Array(items.iter().map(|v| fill(environment, v, variables)).collect::<Result<_, _>>()?)
            }
            Value::Object(map) => {
                Value::Object(
                    map.iter()
                        .map(|(k, v)| Ok((k.clone(), fill(environment, v, variables)?)))
                        .collect::<Result<_, String>>()?,
                )
            }
            other => other.clone(),
        })
    }
    fill(&environment, with, variables)
}

impl Plan {
    /// The graph in Mermaid's language.
    pub fn mermaid(&self) -> String {
        use std::fmt::Write;
        let mut out = String::from("flowchart TD\n");
        let key = |id: &str| id.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        for (index, (name, _)) in self.stages.iter().enumerate() {
            let _ = writeln!(out, "  subgraph s{index}[\"{name}\"]");
            for step in self.steps.iter().filter(|s| s.stage == index) {
                let _ = writeln!(out, "    {}[\"{}<br/>{}\"]", key(&step.id), step.id, step.action);
            }
            let _ = writeln!(out, "  end");
            if index > 0 {
                let _ = writeln!(out, "  s{} --> s{index}", index - 1);
            }
        }
        for step in &self.steps {
            for need in &step.needs {
                let _ = writeln!(out, "  {} --> {}", key(need), key(&step.id));
            }
        }
        out
    }

    /// The graph as indented text.
    pub fn tree(&self) -> String {
        use std::fmt::Write;
        let mut out = String::new();
        for (index, (name, parallel)) in self.stages.iter().enumerate() {
            let _ = writeln!(out, "{}. {name} (up to {parallel} at once)", index + 1);
            for step in self.steps.iter().filter(|s| s.stage == index) {
                let needs = if step.needs.is_empty() {
                    String::new()
                } else {
                    format!("  needs {}", step.needs.join(", "))
                };
                let gate = step.gate.as_ref().map(|g| format!("  asks {}", g.who)).unwrap_or_default();
                let _ = writeln!(out, "   - {:<24} {}{needs}{gate}", step.id, step.action);
            }
        }
        out
    }
}
