//! The documents are true: their commands run, their generated pages are current, their links lead somewhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Ended, finish, program, run};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One fenced block that is marked `sh`.
struct Block {
    line: usize,
    script: String,
    /// From a comment `<!-- exit 4 -->` behind the block; 0 without one.
    exit: i32,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut inside = None;
    for (n, line) in text.lines().enumerate() {
        match inside {
            None if line.starts_with("```") => {
                let is_script = line == "```sh";
                if is_script {
                    found.push(Block { line: n + 1, script: String::new(), exit: 0 });
                }
                inside = Some(is_script);
            }
            None => {
                let exit = line.strip_prefix("<!-- exit ").and_then(|rest| rest.strip_suffix(" -->"));
                if let (Some(exit), Some(block)) = (exit, found.last_mut()) {
                    block.exit = exit.parse().expect("a number stands behind `exit`");
                }
            }
            Some(_) if line == "```" => inside = None,
            Some(true) => {
                let block = found.last_mut().expect("the block was begun above");
                block.script.push_str(line);
                block.script.push('\n');
            }
            Some(false) => {}
        }
    }
    assert!(inside.is_none(), "a block has no end");
    found
}

/// Ends what a document started and a failure left running.
struct Started(PathBuf);
impl Drop for Started {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(&self.0) {
            let _ = Command::new("kill").args(["-9", pid.trim()]).output();
        }
    }
}

fn in_shell(folder: &Path, script: &str) -> Ended {
    let binary = Path::new(env!("CARGO_BIN_EXE_farsite"));
    let mut path = vec![binary.parent().expect("a program lies in a folder").to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut shell = Command::new("sh");
    // The environment of the other tests: nothing of this machine's configuration.
    for (name, value) in program(folder).get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.current_dir(folder).env("PATH", std::env::join_paths(path).unwrap()).args(["-e", "-c", script]);
    finish(&mut shell)
}

#[test]
fn every_command_of_getting_started_does_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _agent = Started(folder.path().join("agent.pid"));
    let text = read(&root().join("docs/getting-started.md"));
    let blocks = blocks(&text);
    assert!(blocks.len() > 20, "{} blocks", blocks.len());
    for block in blocks {
        let script = block.script.replace("127.0.0.1:7401", &format!("127.0.0.1:{port}"));
        let ended = in_shell(folder.path(), &script);
        assert_eq!(
            ended.code, block.exit,
            "docs/getting-started.md:{}\n{}\n{}\n{}",
            block.line, block.script, ended.stdout, ended.stderr
        );
    }
    let reports = std::fs::read_dir(folder.path().join("operator/state/reports")).unwrap().count();
    assert!(reports >= 4, "{reports} reports");
    assert!(read(&folder.path().join("drill.xml")).contains("<testsuite"));
}

#[test]
fn the_generated_pages_and_schemas_are_current() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["docs", "--out", "."]).expect(0);
    let mut seen = 0;
    for below in ["", "schemas"] {
        for entry in std::fs::read_dir(folder.path().join(below)).unwrap().flatten() {
            let made = entry.path();
            if !made.is_file() {
                continue;
            }
            let name = Path::new(below).join(entry.file_name());
            let is = std::fs::read_to_string(root().join("docs").join(&name)).unwrap_or_default();
            assert!(
                is == read(&made),
                "docs/{} is not current\nhint: `cargo run -- docs --out docs` writes it anew",
                name.display()
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 7);
}

/// Markdown files of the repository that people read.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    for folder in ["docs", "docs/decisions"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "md") {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Headings as GitHub makes anchors of them.
fn anchors(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let kept = line.trim_start_matches('#').trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let mut wrong = Vec::new();
    for path in documents() {
        let text = read(&path);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.with_file_name("").join(file) };
            let leads =
                target.exists() && (anchor.is_empty() || anchors(&read(&target)).iter().any(|a| a == anchor));
            if !leads {
                wrong.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Words of code that begin with `farsite `: its first words name a command, and its options are known there.
#[test]
fn every_command_and_option_that_a_document_names_exists() {
    let folder = tempfile::tempdir().unwrap();
    let help = |words: &[&str]| {
        let mut args = words.to_vec();
        args.push("--help");
        let ended = run(folder.path(), &args);
        (ended.code == 0).then_some(ended.stdout)
    };
    let top = help(&[]).unwrap();
    let mut wrong = Vec::new();
    let mut known: std::collections::BTreeMap<String, Option<String>> = std::collections::BTreeMap::new();
    for path in documents() {
        let text = read(&path);
        for code in text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("farsite ")) {
            let words: Vec<&str> = code.split_whitespace().skip(1).collect();
            let plain = |word: &&&str| {
                word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
            };
            let command: Vec<&str> = words.iter().take_while(plain).take(2).copied().collect();
            let Some(first) = command.first() else { continue };
            if !top.lines().any(|line| line.split_whitespace().next() == Some(first)) {
                wrong.push(format!("{}: {code}", path.display()));
                continue;
            }
            let group = matches!(*first, "points" | "promotion" | "drill" | "runbook" | "policy" | "store");
            let command = if group { &command[..] } else { &command[..1] };
            let page = known.entry(command.join(" ")).or_insert_with(|| help(command));
            let options = words.iter().filter(|word| word.starts_with("--"));
            let fits = page.as_ref().is_some_and(|page| {
                options.clone().all(|option| page.contains(option.split('=').next().unwrap_or(option)))
            });
            if !fits {
                wrong.push(format!("{}: {code}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "no such command or option: {wrong:#?}");
}

/// Every rust file below a folder.
fn sources(folder: &Path, found: &mut String) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() && path.file_name().is_none_or(|name| name != "tests") {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push_str(&read(&path));
        }
    }
}

/// What stands between the `…` of a message is text of the program.
#[test]
fn every_message_of_the_operators_guide_is_one_of_the_program() {
    let mut code = String::new();
    sources(&root().join("crates"), &mut code);
    let guide = read(&root().join("docs/operator-guide.md"));
    let (_, table) = guide.split_once("## Messages").expect("the guide has a table of messages");
    let messages: Vec<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(messages.len() > 20, "{messages:?}");
    let is_text =
        |part: &str| part.chars().filter(char::is_ascii_alphabetic).count() < 4 || code.contains(part);
    let wrong: Vec<&&str> =
        messages.iter().filter(|m| !m.split('…').all(|part| is_text(part.trim()))).collect();
    assert!(wrong.is_empty(), "no such message: {wrong:#?}");
}
