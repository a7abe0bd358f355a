//! A JSON Schema as tables: one for each kind of object, with its keys, what each may hold, and what it means. The root comes
//! first, then the objects in the order in which they are named.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Map, Value};

/// Names of the code that a reader of YAML calls otherwise.
const NAMES: [(&str, &str); 9] = [
    ("Span", "duration"),
    ("ByteSize", "size"),
    ("Rate", "rate"),
    ("SecretRef", "secret"),
    ("GroupName", "name"),
    ("SiteName", "name"),
    ("AddressesInFile", "address, or list of addresses"),
    ("AllWord", "`all`"),
    ("NoUndo", "`none`"),
];

/// All keys of a file, by its schema.
pub fn keys(schema: &Value) -> String {
    let defs = schema["$defs"].as_object().cloned().unwrap_or_default();
    let mut text = String::from("## The file\n\n");
    text.push_str(&table(schema, &defs));
    let mut seen = BTreeSet::new();
    let mut next = referred(schema);
    while !next.is_empty() {
        let mut found = Vec::new();
        for name in next {
            let Some(def) = defs.get(&name) else { continue };
            if !seen.insert(name.clone()) {
                continue;
            }
            if is_object(def) {
                let _ = write!(text, "\n## {}\n\n", title(&name));
                if let Some(about) = def["description"].as_str() {
                    let _ = writeln!(text, "{about}\n");
                }
                text.push_str(&table(def, &defs));
            }
            found.extend(referred(def));
        }
        next = found;
    }
    text.push_str(&values(&seen, &defs));
    text
}

/// What a text may look like, for every kind that is used.
fn values(seen: &BTreeSet<String>, defs: &Map<String, Value>) -> String {
    let mut rows = BTreeSet::new();
    for (name, word) in NAMES.iter().take(4) {
        if let (true, Some(about)) =
            (seen.contains(*name), defs.get(*name).and_then(|d| d["description"].as_str()))
        {
            rows.insert(format!("| {word} | {} |\n", cell(about)));
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\n## Values\n\n| value | how it is written |\n| --- | --- |\n{}",
        rows.into_iter().collect::<String>()
    )
}

fn is_object(def: &Value) -> bool {
    def["properties"].is_object() || choices(def).is_some()
}

/// An object of which exactly one key is given: `- mariadb: …`.
fn choices(def: &Value) -> Option<Vec<&Value>> {
    let many = def["oneOf"].as_array()?;
    many.iter().all(|one| one["properties"].is_object()).then(|| many.iter().collect())
}

fn table(def: &Value, defs: &Map<String, Value>) -> String {
    let mut text = String::from("| key | holds | default | meaning |\n| --- | --- | --- | --- |\n");
    let one_of = choices(def);
    let objects = one_of.clone().unwrap_or_else(|| vec![def]);
    for object in objects {
        let required: Vec<&str> =
            object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (key, property) in object["properties"].as_object().into_iter().flatten() {
            let default = match (&one_of, required.contains(&key.as_str())) {
                (Some(_), _) => "exactly one of these".to_owned(),
                (None, true) => "must be given".to_owned(),
                (None, false) => default(property),
            };
            let about = about(property, defs).or_else(|| of_choice(object, one_of.is_some())).unwrap_or("");
            row(&mut text, &format!("`{key}`"), &holds(property, defs), &default, about);
        }
    }
    if def["additionalProperties"].is_object() {
        let other = &def["additionalProperties"];
        row(&mut text, "any other name", &holds(other, defs), "", about(other, defs).unwrap_or(""));
    }
    text
}

/// Of one key out of several, its object is what is described.
fn of_choice(object: &Value, is_choice: bool) -> Option<&str> {
    object["description"].as_str().filter(|_| is_choice)
}

fn row(text: &mut String, key: &str, holds: &str, default: &str, about: &str) {
    let _ = writeln!(text, "| {key} | {holds} | {default} | {} |", cell(about));
}

/// What is said of a key itself, else of what it holds.
fn about<'a>(property: &'a Value, defs: &'a Map<String, Value>) -> Option<&'a str> {
    let own = property["description"].as_str();
    let named = || {
        let def = defs.get(named_by(property)?)?;
        // How a text is written stands under "Values".
        (is_object(def) || def["anyOf"].is_array() || def["oneOf"].is_array())
            .then(|| def["description"].as_str())?
    };
    own.or_else(named)
}

/// The one definition that a property names, `null` aside.
fn named_by(property: &Value) -> Option<&str> {
    let one =
        |value: &'_ Value| value["$ref"].as_str().map(|path| path.trim_start_matches("#/$defs/").to_owned());
    if let Some(path) = property["$ref"].as_str() {
        return Some(path.trim_start_matches("#/$defs/"));
    }
    let mut parts = property["anyOf"].as_array()?.iter().filter(|part| one(part).is_some());
    let only = parts.next()?["$ref"].as_str()?;
    parts.next().is_none().then(|| only.trim_start_matches("#/$defs/"))
}

/// A default as it would be typed; nothing where leaving the key away is a meaning of its own.
fn default(property: &Value) -> String {
    match &property["default"] {
        Value::Null | Value::Object(_) => String::new(),
        Value::String(text) if text.is_empty() => "empty".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(list) if list.is_empty() => String::new(),
        other => format!("`{other}`"),
    }
}

/// What a key holds, in words; objects of their own are linked.
fn holds(property: &Value, defs: &Map<String, Value>) -> String {
    if let Some(path) = property["$ref"].as_str() {
        return definition(path.trim_start_matches("#/$defs/"), defs);
    }
    if let Some(word) = property["const"].as_str() {
        return format!("`{word}`");
    }
    if let Some(words) = property["enum"].as_array() {
        return words
            .iter()
            .map(|word| format!("`{}`", word.as_str().unwrap_or("?")))
            .collect::<Vec<_>>()
            .join(", ");
    }
    for (key, between) in [("anyOf", " or "), ("oneOf", ", ")] {
        if let Some(parts) = property[key].as_array() {
            let words: Vec<String> =
                parts.iter().filter(|part| part["type"] != "null").map(|part| holds(part, defs)).collect();
            return words.join(between);
        }
    }
    let kind = match &property["type"] {
        Value::String(kind) => kind.as_str(),
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("")
        }
        _ => "",
    };
    match kind {
        "string" => "text".to_owned(),
        "integer" | "number" => "number".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        "array" => match holds(&property["items"], defs) {
            several if several.contains(" or ") => format!("list; each {several}"),
            one => format!("list of {one}"),
        },
        "object" if property["additionalProperties"].is_object() => {
            format!("name: {}", holds(&property["additionalProperties"], defs))
        }
        "object" if property["properties"].is_object() => inline(property, defs),
        _ => "anything".to_owned(),
    }
}

/// A small object that has no name of its own.
fn inline(object: &Value, defs: &Map<String, Value>) -> String {
    let keys = object["properties"].as_object().into_iter().flatten();
    let keys: Vec<String> = keys.map(|(key, value)| format!("`{key}:` {}", holds(value, defs))).collect();
    keys.join(", ")
}

fn definition(name: &str, defs: &Map<String, Value>) -> String {
    if let Some((_, word)) = NAMES.iter().find(|(known, _)| *known == name) {
        return (*word).to_owned();
    }
    match defs.get(name) {
        Some(def) if is_object(def) => format!("[{0}](#{0})", title(name)),
        Some(def) => holds(def, defs),
        None => "anything".to_owned(),
    }
}

/// The definitions that are named, in order.
fn referred(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    match value {
        Value::Object(map) => {
            for (key, inner) in map.iter().filter(|(key, _)| *key != "$defs") {
                match inner.as_str() {
                    Some(path) if key == "$ref" => found.push(path.trim_start_matches("#/$defs/").to_owned()),
                    _ => found.extend(referred(inner)),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| found.extend(referred(inner))),
        _ => {}
    }
    found
}

/// `RetentionFile` is called `retention` by whoever writes one.
fn title(name: &str) -> String {
    let name = name.trim_end_matches("InFile").trim_end_matches("File");
    let mut title = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !title.is_empty() {
            title.push('-');
        }
        title.extend(letter.to_lowercase());
    }
    title
}

/// Text that may stand in a table.
pub fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
