//! What a person or a script reads: tables, JSON, colours where they are wanted, hints. Results go to stdout, all
//! else to stderr. A reader that goes away early (`| head`) is no error.

use std::io::{IsTerminal, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::{Cli, Command};

/// How this run prints.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
    colour: bool,
    stderr_colour: bool,
}

/// A colour with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Bad,
    Warn,
    Strong,
    Dim,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Bad => "31",
            Self::Warn => "33",
            Self::Strong => "1",
            Self::Dim => "2",
        }
    }
}

fn wants_colour(terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    terminal && !set("NO_COLOR") && std::env::var("TERM").map_or(true, |term| term != "dumb")
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self {
            json,
            colour: wants_colour(std::io::stdout().is_terminal()),
            stderr_colour: wants_colour(std::io::stderr().is_terminal()),
        }
    }

    #[allow(clippy::unused_self, reason = "everything that is printed goes through an Output")]
    pub fn line(self, text: impl AsRef<str>) {
        let _ = writeln!(std::io::stdout(), "{}", text.as_ref());
    }

    /// A line for people only: `--json` leaves it out.
    pub fn say(self, text: impl AsRef<str>) {
        if !self.json {
            self.line(text);
        }
    }

    pub fn json<T: Serialize>(self, value: &T) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(error) => self.warn(&format!("this cannot be shown as JSON: {error}")),
        }
    }

    pub fn paint(self, tone: Tone, text: &str) -> String {
        paint(self.colour, tone, text)
    }

    /// For lines that go to stderr.
    pub fn paint_stderr(self, tone: Tone, text: &str) -> String {
        paint(self.stderr_colour, tone, text)
    }

    /// Something a person should know, on stderr.
    pub fn warn(self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{} {text}", paint(self.stderr_colour, Tone::Warn, "warning:"));
    }

    /// An error; its `  hint: …` lines stand out.
    pub fn error(self, text: &str) {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "{} ", paint(self.stderr_colour, Tone::Bad, "error:"));
        for line in text.trim_end().lines() {
            let _ = match line.trim_start().strip_prefix("hint:") {
                Some(hint) => writeln!(stderr, "{}{hint}", paint(self.stderr_colour, Tone::Good, "hint:")),
                None => writeln!(stderr, "{line}"),
            };
        }
    }

    /// A table without lines: it can be read, cut and compared.
    pub fn table(self, header: &[&str], rows: &[Vec<String>]) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if !header.is_empty() {
            table.set_header(header.iter().map(|name| name.to_uppercase()));
        }
        for row in rows {
            table.add_row(row);
        }
        for (n, line) in table.to_string().lines().enumerate() {
            // One space less on the left; no blanks at the end.
            let line = line.strip_prefix(' ').unwrap_or(line).trim_end();
            if n == 0 && !header.is_empty() {
                self.line(self.paint(Tone::Dim, line));
            } else {
                self.line(self.marks(line));
            }
        }
    }

    /// Colours the marks of a finished line: the table has measured it before.
    fn marks(self, line: &str) -> String {
        if !self.colour {
            return line.to_owned();
        }
        [(Tone::Good, "✓"), (Tone::Bad, "✗"), (Tone::Warn, "!")].iter().fold(
            line.to_owned(),
            |line, (tone, mark)| match line.strip_prefix(mark) {
                Some(rest) => format!("{}{rest}", self.paint(*tone, mark)),
                None => line,
            },
        )
    }
}

fn paint(colour: bool, tone: Tone, text: &str) -> String {
    if colour { format!("\u{1b}[{}m{text}\u{1b}[0m", tone.code()) } else { text.to_owned() }
}

/// Seconds as a person reads them, rounded up: a figure is never better than the truth.
pub fn seconds(s: f64) -> String {
    if s < 10.0 {
        return format!("{:.1}s", (s * 10.0).ceil() / 10.0);
    }
    farsite_model::quantity::Span::from_secs(s.ceil() as u64).to_string()
}

/// Logs go to stderr: warnings for commands, all that happens for the agent; `FARSITE_LOG` says otherwise.
pub fn start_logging(cli: &Cli) {
    let default = match cli.command {
        Command::Agent(_) => "info",
        _ => "warn",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("FARSITE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(wants_colour(std::io::stderr().is_terminal()))
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_to_the_worse_side() {
        assert_eq!(seconds(1.21), "1.3s");
        assert_eq!(seconds(61.2), "1m2s");
        assert_eq!(seconds(0.0), "0.0s");
    }

    #[test]
    fn without_a_terminal_nothing_is_coloured() {
        let out = Output { json: false, colour: false, stderr_colour: false };
        assert_eq!(out.paint(Tone::Bad, "x"), "x");
    }
}
