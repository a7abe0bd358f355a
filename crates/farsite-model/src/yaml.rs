//! YAML in, checked values out; and for everything that is wrong a file, a line, a column, the line itself and
//! what to write instead.

use std::fmt;
use std::ops::Deref;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is wrong in a YAML file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError {
    /// As the person named it.
    pub file: String,
    /// From 1; 0 when the place is not known.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// The source line and below it a caret; cut off with `***` where a value begins that may be a secret. Empty
    /// when the place is not known.
    pub snippet: String,
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        if !self.snippet.is_empty() {
            write!(f, "\n{}", self.snippet)?;
        }
        Ok(())
    }
}
impl std::error::Error for YamlError {}

/// A file's name and text, for errors that quote from it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl Source<'_> {
    /// An error about a value that parsed, but makes no sense.
    pub fn error<T>(&self, at: &At<T>, message: impl Into<String>, hint: Option<String>) -> YamlError {
        self.at(at.line, at.column, message, hint)
    }

    /// An error about the file as a whole.
    pub fn whole(&self, message: impl Into<String>, hint: Option<String>) -> YamlError {
        self.at(0, 0, message, hint)
    }

    fn at(&self, line: usize, column: usize, message: impl Into<String>, hint: Option<String>) -> YamlError {
        let snippet = snippet(self.text, line, column);
        YamlError { file: self.file.to_owned(), line, column, message: message.into(), hint, snippet }
    }
}

/// A value together with where it stands in its file, for checks that come after parsing.
#[derive(Debug, Clone, Default)]
pub struct At<T> {
    pub value: T,
    /// From 1; 0 when the value was not read from a file.
    pub line: usize,
    pub column: usize,
}

/// A value that stands in no file, such as a default.
impl<T> From<T> for At<T> {
    fn from(value: T) -> Self {
        Self { value, line: 0, column: 0 }
    }
}
impl<T> Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}
/// Where a value stands does not make it another value.
impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}
impl<T: Eq> Eq for At<T> {}
impl<T: fmt::Display> fmt::Display for At<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}
impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = serde_saphyr::Spanned::<T>::deserialize(deserializer)?;
        let place = spanned.referenced;
        Ok(Self { value: spanned.value, line: count(place.line()), column: count(place.column()) })
    }
}
impl<T: Serialize> Serialize for At<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}
impl<T: schemars::JsonSchema> schemars::JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

/// Reads one document. `file` is only for messages. Unknown keys are errors where `T` denies them, keys that
/// stand twice and wrong types always are.
pub fn parse<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, YamlError> {
    // The library's own snippets would show what stands around the place, secrets included.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| explain(Source { file, text }, error.without_snippet()))
}

/// The text of a file; that it cannot be read is said in the same way as all else that is wrong with it.
pub fn read(path: &Path) -> Result<String, YamlError> {
    std::fs::read_to_string(path).map_err(|error| {
        let file = path.display().to_string();
        Source { file: &file, text: "" }.whole(format!("cannot be read: {error}"), None)
    })
}

/// Lines and columns come as 64 bits; no file is that long.
fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

fn snippet(text: &str, line: usize, column: usize) -> String {
    let Some(source_line) = line.checked_sub(1).and_then(|n| text.lines().nth(n)) else {
        return String::new();
    };
    let shown =
        if is_secret_of_line_above(text, line, source_line) { "***".into() } else { mask(source_line) };
    let number = line.to_string();
    let before = column.saturating_sub(1);
    if before > shown.chars().count() {
        return format!("  {number} | {shown}");
    }
    // Tabs stay tabs, so that the caret stands under its place in any terminal.
    let pad: String = shown.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    format!("  {number} | {shown}\n  {} | {pad}^", " ".repeat(number.len()))
}

/// A value that begins on the line below its key: `secret-key: |`, or nothing behind the colon.
fn is_secret_of_line_above(text: &str, line: usize, source_line: &str) -> bool {
    let above = text.lines().take(line.saturating_sub(1)).filter(|line| !line.trim().is_empty()).last();
    let Some(above) = above.map(str::trim_end) else { return false };
    let key = above.trim_end_matches(['|', '>', '-', '+', ' ']);
    let is_value = key.ends_with(':') && (key != above || !source_line.contains(':'));
    is_value && mask(&format!("{key} {}", source_line.trim())).ends_with("***")
}

/// The line up to the first value that may be a secret. A key counts as secret by its name, typing errors
/// included (`pasword`); references to secrets are no secrets.
fn mask(line: &str) -> String {
    const NAMES: [&str; 7] = ["pass", "pasw", "pwd", "secret", "token", "key", "identity"];
    const HARMLESS: [&str; 5] = ["${env:", "file:", "credential:", "{", "["];
    // A key file's place; an S3 secret may begin with a slash as well.
    const PLACES: [&str; 2] = ["/", "."];
    let mut from = 0;
    while let Some(colon) = line[from..].find(':').map(|n| from + n) {
        let before = line[..colon].trim_end_matches(['"', '\'']);
        let start = before
            .char_indices()
            .rfind(|(_, c)| !c.is_alphanumeric() && !matches!(c, '-' | '_'))
            .map_or(0, |(n, c)| n + c.len_utf8());
        let key = before[start..].to_lowercase();
        let value = line[colon + 1..].trim_start_matches([' ', '\t', '"', '\'']);
        let begins = |starts: &[&str]| starts.iter().any(|start| value.starts_with(start));
        let may_be_place = !NAMES[..5].iter().any(|name| key.contains(name));
        let harmless = value.is_empty() || begins(&HARMLESS) || (may_be_place && begins(&PLACES));
        if !harmless && NAMES.iter().any(|name| key.contains(name)) {
            return format!("{}***", &line[..line.len() - value.len()]);
        }
        from = colon + 1;
    }
    // A URL with a user's password in it, or an age identity under whatever key.
    let url = line.find("://").filter(|at| line[*at..].contains('@')).map(|at| at + "://".len());
    match [url, line.find("AGE-SECRET-KEY")].into_iter().flatten().min() {
        Some(at) => format!("{}***", &line[..at]),
        None => line.to_owned(),
    }
}

fn explain(source: Source<'_>, error: &serde_saphyr::Error) -> YamlError {
    use serde_saphyr::Error;
    let (line, column) =
        error.location().map_or((0, 0), |place| (count(place.line()), count(place.column())));
    let nearest =
        |name: &str, expected: &[&'static str]| match crate::nearest::nearest(name, expected.iter().copied())
            .as_slice()
        {
            [] => format!("known here: {}", expected.join(", ")),
            names => format!("did you mean {}?", names.join(" or ")),
        };
    let (message, hint) = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            (format!("unknown key {field:?}"), Some(nearest(field, expected)))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            (format!("{variant:?} is not known here"), Some(nearest(variant, expected)))
        }
        Error::SerdeMissingField { field, .. } => {
            (format!("the key {field:?} is missing"), Some(format!("add `{field}: …`")))
        }
        Error::DuplicateMappingKey { key, .. } => (
            format!("the key {:?} stands here twice", key.as_deref().unwrap_or("?")),
            Some("remove one of the two".to_owned()),
        ),
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            (format!("expected {expected}, found {unexpected}"), None)
        }
        Error::SerdeInvalidLength { len, expected, .. } => {
            (format!("expected {expected}, found {len} elements"), None)
        }
        Error::InvalidScalar { ty, .. } => (format!("expected {ty}"), None),
        Error::Unexpected { expected, .. } => (format!("expected {expected}"), None),
        Error::Message { msg, .. } => (msg.clone(), None),
        other => {
            let rendered = other.render();
            // The place is said once, in front; the library repeats it behind the message.
            let first = rendered.lines().next().unwrap_or("").trim_start_matches("error: ");
            let message = match first.find(" at line ") {
                Some(end) => &first[..end],
                None => first,
            };
            let message = match message.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
                Some((_, message)) => message,
                None => message,
            };
            (message.to_owned(), None)
        }
    };
    source.at(line, column, message, hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        #[allow(dead_code)]
        schedule: String,
        #[allow(dead_code)]
        count: Option<u32>,
    }

    #[test]
    fn an_unknown_key_is_placed_and_the_nearest_offered() {
        let error = parse::<Example>("p.yaml", "schedule: x\nshedule: y\n").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("p.yaml:2:1: unknown key \"shedule\""), "{text}");
        assert!(text.contains("did you mean schedule?") && text.contains("2 | shedule: y"), "{text}");
    }

    #[test]
    fn a_wrong_type_a_missing_key_and_a_duplicate_are_placed() {
        let error = parse::<Example>("p.yaml", "schedule: x\ncount: many\n").unwrap_err();
        assert_eq!((error.line, error.column), (2, 8), "{error}");
        let error = parse::<Example>("p.yaml", "count: 1\n").unwrap_err();
        assert!(error.to_string().contains("\"schedule\" is missing"), "{error}");
        let error = parse::<Example>("p.yaml", "schedule: x\nschedule: y\n").unwrap_err();
        assert!(error.line == 2 && error.to_string().contains("twice"), "{error}");
    }

    #[test]
    fn the_first_line_says_it_all_and_the_caret_shows_the_place() {
        let error = parse::<Example>("p.yaml", "schedule: x\nshedule: y\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "p.yaml:2:1: unknown key \"shedule\"; did you mean schedule?\n  2 | shedule: y\n    | ^"
        );
    }

    #[test]
    fn a_wrong_type_says_what_was_expected() {
        for (text, start) in [
            ("schedule: x\ncount: many\n", "p.yaml:2:8: expected "),
            ("schedule: { a: 1 }\n", "p.yaml:1:11: expected "),
            ("- schedule\n", "p.yaml:1:1: expected "),
        ] {
            let message = parse::<Example>("p.yaml", text).unwrap_err().to_string();
            assert!(message.starts_with(start), "{message}");
        }
    }

    #[test]
    fn broken_yaml_has_a_place_too() {
        let message = parse::<Example>("p.yaml", "schedule: [red\ncount: 1\n").unwrap_err().to_string();
        assert!(message.starts_with("p.yaml:") && message.contains(" | "), "{message}");
        assert!(!message.contains(" at line "), "{message}");
    }

    #[test]
    fn a_value_knows_where_it_stands() {
        let found: std::collections::BTreeMap<String, At<u32>> = parse("p.yaml", "a: 1\nbb: 7\n").unwrap();
        let at = &found["bb"];
        assert_eq!((at.value, at.line, at.column), (7, 2, 5));
    }

    #[test]
    fn a_quoted_line_never_shows_a_literal_secret() {
        for line in [
            "{ schedule: x, pasword: hunter2 }",
            "{ schedule: x, \"pass\": \"hunter2\", zzz: 1 }",
            "{ secret-key: hunter2, schedule: x }",
            "{ secret-key: /hunter2, schedule: x }",
            "{ zzz: AGE-SECRET-KEY-hunter2 }",
            "{ zzz: https://me:hunter2@example.org }",
        ] {
            let message = parse::<Example>("p.yaml", line).unwrap_err().to_string();
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
