//! What `farsite runbook check` says about a runbook.

use std::collections::BTreeMap;

use farsite_model::{Level, Mode};
use farsite_runbook::action::Registry;
use farsite_runbook::plan::{Plan, plan};

fn library(others: &[(&str, &str)]) -> BTreeMap<String, String> {
    others.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn check(text: &str, others: &[(&str, &str)]) -> Result<Plan, String> {
    plan("r.yaml", text, &library(others), &Registry::standard()).map_err(|error| error.to_string())
}

const WAIT: &str = "action: wait, with: { for: 1s }";

#[test]
fn a_cycle_is_shown_with_its_steps_and_its_place() {
    let text = format!(
        "name: r\nstages:\n- name: s\n  steps:\n  - {{ id: a, {WAIT}, needs: [c] }}\n  - {{ id: b, {WAIT}, needs: [a] }}\n  - {{ id: c, {WAIT}, needs: [b] }}\n"
    );
    let error = check(&text, &[]).unwrap_err();
    assert!(error.starts_with("r.yaml:5:"), "{error}");
    assert!(error.contains("a → b → c → a"), "{error}");
}

#[test]
fn an_unknown_action_gets_the_nearest_one() {
    let error =
        check("name: r\nstages:\n- name: s\n  steps:\n  - id: a\n    action: htp-check\n", &[]).unwrap_err();
    assert!(error.starts_with("r.yaml:6:13: ") && error.contains("did you mean http-check"), "{error}");
}

#[test]
fn wrong_parameters_are_placed() {
    let error = check(
        "name: r\nstages:\n- name: s\n  steps:\n  - id: a\n    action: wait\n    with: { four: 1s }\n",
        &[],
    )
    .unwrap_err();
    assert!(error.starts_with("r.yaml:7:") && error.contains("unknown field `four`"), "{error}");
}

#[test]
fn an_undeclared_variable_gets_the_nearest_one() {
    let text = "name: r\nvariables: { service_url: '' }\nstages:\n- name: s\n  steps:\n  - id: a\n    action: http-check\n    with: { url: '{{ servce_url }}' }\n";
    let error = check(text, &[]).unwrap_err();
    assert!(error.contains("did you mean service_url") && error.contains("declare it"), "{error}");
}

#[test]
fn a_dependency_on_a_later_stage_or_on_nothing_is_refused() {
    let later = format!(
        "name: r\nstages:\n- name: s\n  steps:\n  - {{ id: a, {WAIT}, needs: [b] }}\n- name: t\n  steps:\n  - {{ id: b, {WAIT} }}\n"
    );
    assert!(check(&later, &[]).unwrap_err().contains("stands in a later stage"));
    let nothing =
        format!("name: r\nstages:\n- name: s\n  steps:\n  - {{ id: stop, {WAIT}, needs: [stpo] }}\n");
    assert!(check(&nothing, &[]).unwrap_err().contains("no step is called \"stpo\""));
}

#[test]
fn an_include_comes_first_and_may_not_include_itself() {
    let inner = format!("name: inner\nstages:\n- name: first\n  steps:\n  - {{ id: a, {WAIT} }}\n");
    let outer = format!(
        "name: outer\ninclude: inner\nstages:\n- name: second\n  steps:\n  - {{ id: b, {WAIT}, needs: [a] }}\n"
    );
    let plan = check(&outer, &[("inner", &inner)]).unwrap();
    assert_eq!(plan.steps.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(plan.tree().contains("needs a") && plan.mermaid().contains("a --> b"));
    let own = "name: outer\ninclude: outer\nstages: []\n";
    assert!(check(own, &[("outer", own)]).unwrap_err().contains("includes itself"));
    assert!(
        check("name: o\ninclude: inerr\nstages: []\n", &[("inner", &inner)])
            .unwrap_err()
            .contains("did you mean inner")
    );
}

#[test]
fn a_step_that_stands_twice_is_refused() {
    let text =
        format!("name: r\nstages:\n- name: s\n  steps:\n  - {{ id: a, {WAIT} }}\n  - {{ id: a, {WAIT} }}\n");
    assert!(check(&text, &[]).unwrap_err().contains("stands here twice"));
}

#[test]
fn steps_say_in_which_runs_they_take_part() {
    let text = format!(
        "name: r\nvariables: {{ hook: '' }}\nstages:\n- name: s\n  steps:\n  - {{ id: a, {WAIT}, runs: real-only }}\n  - {{ id: b, {WAIT}, runs: drill-only }}\n  - {{ id: c, {WAIT}, when: {{ level: [business] }} }}\n  - {{ id: d, {WAIT}, when: {{ set: hook }} }}\n"
    );
    let plan = check(&text, &[]).unwrap();
    let taking_part = |mode, level, hook: &str| {
        let variables = BTreeMap::from([("hook".to_owned(), hook.to_owned())]);
        let steps = plan.steps.iter().filter(|s| s.left_out(mode, level, &variables).is_none());
        steps.map(|s| s.id.clone()).collect::<String>()
    };
    assert_eq!(taking_part(Mode::Failover, Level::Application, ""), "a");
    assert_eq!(taking_part(Mode::Drill, Level::Business, "x"), "bcd");
}
