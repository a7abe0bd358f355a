//! What stands behind a runbook's keys: the actions that steps may name, and the runbooks that ship.

use std::fmt::Write;

use farsite_model::quantity::Span;
use farsite_runbook::plan;

use super::reference::cell;
use super::words;
use crate::failure::Failure;

pub fn sections() -> Result<String, Failure> {
    let mut text = words::RUNBOOK_ACTIONS.trim().to_owned();
    text.push_str("\n\n| action | what it does | twice is as good as once | undone | time |\n| --- | --- | --- | --- | --- |\n");
    let yes = |is: bool| if is { "yes" } else { "no" };
    let registry = farsite_promote::registry_for_checks();
    for action in registry.iter() {
        let limit = Span::from_secs(action.default_timeout().as_secs());
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {limit} |",
            action.name(),
            cell(action.summary()),
            yes(action.idempotent()),
            yes(action.undoable()),
        );
    }
    let _ = write!(text, "\n{}\n", words::RUNBOOK_SHIPPED.trim());
    let library = farsite_promote::built_in_runbooks();
    for name in ["data", "application", "business"] {
        let Some(source) = library.get(name) else { continue };
        let plan = plan::plan(&format!("{name}.yaml"), source, &library, &registry)?;
        let _ = write!(
            text,
            "\n### {name}\n\n{}\n\n```text\n{}\n```\n",
            plan.description.trim(),
            plan.tree().trim_end()
        );
    }
    let business =
        library.get("business").map(|source| plan::plan("business.yaml", source, &library, &registry));
    if let Some(business) = business.transpose()? {
        let _ =
            write!(text, "\n{}\n\n| variable | default |\n| --- | --- |\n", words::RUNBOOK_VARIABLES.trim());
        for (name, default) in &business.variables {
            let default =
                if default.is_empty() { "empty".to_owned() } else { format!("`{}`", cell(default)) };
            let _ = writeln!(text, "| `{name}` | {default} |");
        }
    }
    Ok(text)
}
