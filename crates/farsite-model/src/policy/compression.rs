//! How hard blocks are compressed: `auto`, or a level of zstd.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Levels of zstd between which a run may choose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Harder while the line is what a run waits for, lighter while it is the processor.
    #[default]
    Auto,
    /// Always this one, 1 to 19.
    Level(i32),
}

impl Compression {
    const WANTED: &str = "`auto`, or a level from 1 (fast) to 19 (small)";
    /// The lightest and the hardest level that a run takes.
    pub fn range(self) -> (i32, i32) {
        match self {
            // Beyond 9 a core compresses less than a slow line takes.
            Self::Auto => (1, 9),
            Self::Level(level) => (level, level),
        }
    }
    fn of(text: &str) -> Option<Self> {
        match text.trim() {
            "auto" => Some(Self::Auto),
            number => number.parse().ok().filter(|level| (1..=19).contains(level)).map(Self::Level),
        }
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::of(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?}: expected {}", Self::WANTED)))
    }
}

impl Serialize for Compression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Level(level) => serializer.serialize_str(&level.to_string()),
        }
    }
}

impl JsonSchema for Compression {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Compression".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": format!("How hard blocks are compressed: {}", Self::WANTED),
            "oneOf": [
                { "const": "auto" },
                { "type": "integer", "minimum": 1, "maximum": 19 },
                { "type": "string", "pattern": "^([1-9]|1[0-9])$" }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_is_auto_or_a_level() {
        assert_eq!(Compression::of("auto"), Some(Compression::Auto));
        assert_eq!(Compression::of("3").map(Compression::range), Some((3, 3)));
        for wrong in ["0", "20", "fast", "-1", ""] {
            assert_eq!(Compression::of(wrong), None, "{wrong}");
        }
    }
}
