//! Every command with its words, out of the definitions that the program itself reads its command line with.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command, CommandFactory};

use super::reference::cell;
use super::{GENERATED, words};
use crate::cli::Cli;

pub fn page() -> String {
    let mut root = Cli::command();
    root.build();
    let mut text = format!("{GENERATED}\n{}\n\n", words::CLI.trim());
    text.push_str("## For every command\n\n");
    text.push_str(&arguments(&root, true));
    if let Some(after) = root.get_after_help() {
        let _ = write!(text, "\n```text\n{after}\n```\n");
    }
    for command in commands(&root) {
        section(command, "farsite", &mut text);
    }
    text
}

fn commands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

fn section(command: &Command, before: &str, text: &mut String) {
    let name = format!("{before} {}", command.get_name());
    let _ = write!(text, "\n## {name}\n\n");
    if let Some(about) = command.get_about() {
        let about = about.to_string();
        let stop = if about.ends_with('.') { "" } else { "." };
        let _ = writeln!(text, "{about}{stop}\n");
    }
    let mut inner = commands(command).peekable();
    if inner.peek().is_none() {
        let usage = command.clone().render_usage().to_string();
        let _ = writeln!(text, "```text\n{}\n```", usage.trim_start_matches("Usage: "));
        let table = arguments(command, false);
        if !table.is_empty() {
            let _ = write!(text, "\n{table}");
        }
    }
    for command in inner {
        section(command, &name, text);
    }
}

/// A table of a command's own words, or of those that every command takes.
fn arguments(command: &Command, global: bool) -> String {
    let rows: String = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
        .filter(|arg| arg.is_global_set() == global)
        .map(row)
        .collect();
    if rows.is_empty() { rows } else { format!("| words | meaning | default |\n| --- | --- | --- |\n{rows}") }
}

fn row(arg: &Arg) -> String {
    let value = arg
        .get_value_names()
        .filter(|_| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append))
        .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let mut names: Vec<String> = Vec::new();
    names.extend(arg.get_short().map(|short| format!("-{short}")));
    names.extend(arg.get_long().map(|long| format!("--{long}")));
    let names = match (names.is_empty(), value) {
        (true, value) => value.unwrap_or_else(|| arg.get_id().to_string().to_uppercase()),
        (false, Some(value)) => format!("{} {value}", names.join(", ")),
        (false, None) => names.join(", "),
    };
    let mut meaning = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let possible: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if takes_value && !possible.is_empty() {
        let stop = if meaning.is_empty() || meaning.ends_with(['.', ':']) { "" } else { "." };
        let _ = write!(meaning, "{stop} One of {}", possible.join(", "));
    }
    let default: Vec<String> = arg
        .get_default_values()
        .iter()
        .filter(|_| takes_value)
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let must = if arg.is_required_set() && default.is_empty() { "must be given" } else { "" };
    format!("| `{names}` | {} | {}{must} |\n", cell(&meaning), default.join(" "))
}
