//! Secrets stand in no file of Farsite's: a file says where a secret is, and it is fetched when it is needed.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a reference is written, for messages.
const FORMS: &str =
    "write `${env:NAME}`, `file:/path` or `credential:NAME` (systemd) and put the secret there";

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretRef {
    /// `${env:NAME}`: a variable of the process's environment.
    Env(String),
    /// `file:/path`: the content of a file, less one line end. Its path may hold `${env:NAME}`.
    File(PathBuf),
    /// `credential:NAME`: a file in systemd's `$CREDENTIALS_DIRECTORY` (systemd.exec(5), `LoadCredential=`).
    Credential(String),
}

/// Why a text is not a reference to a secret. Never quotes the text: it may be the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecretRef {
    #[error("a secret may not stand in this file; {FORMS}")]
    Literal,
    #[error("this is not a name of a variable or credential: letters, digits, '_', '-' and '.' are allowed")]
    Name,
    #[error("`file:` needs an absolute path behind it")]
    Relative,
    #[error("{0}")]
    Expansion(String),
}

/// Why a secret could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the environment variable {0} is not set, and a secret is expected there")]
    Unset(String),
    #[error(
        "the credential {0:?} is expected in $CREDENTIALS_DIRECTORY, which is not set; \
         start Farsite from a systemd unit with `LoadCredential={0}:…`"
    )]
    NoCredentials(String),
    #[error("cannot read the secret in {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0} is not a regular file, and a secret is expected there")]
    NotAFile(PathBuf),
    #[error("{path} can be read by everybody (mode {mode:04o}); run `chmod o= {path}` and change the secret")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the secret {0} is empty")]
    Empty(SecretRef),
}

/// A secret's text. It has no `Display`, its `Debug` shows nothing, and it is never serialised.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// For the one call that needs it: a request's signature, a child's environment or standard input; never an
    /// argument list.
    pub fn expose(&self) -> &str {
        &self.0
    }
}
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl SecretRef {
    /// Fetches the secret now.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        self.resolve_with(&|name| std::env::var(name).ok())
    }

    /// The same with another environment.
    pub fn resolve_with(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<Secret, SecretError> {
        let text = match self {
            Self::Env(name) => environment(name).ok_or_else(|| SecretError::Unset(name.clone()))?,
            Self::File(path) => read(path)?,
            Self::Credential(name) => {
                let folder = environment("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| SecretError::NoCredentials(name.clone()))?;
                read(&Path::new(&folder).join(name))?
            }
        };
        if text.is_empty() { Err(SecretError::Empty(self.clone())) } else { Ok(Secret(text)) }
    }
}

fn read(path: &Path) -> Result<String, SecretError> {
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    let about = std::fs::metadata(path).map_err(failed)?;
    // A pipe or device could keep the caller waiting for ever.
    if !about.is_file() {
        return Err(SecretError::NotAFile(path.to_owned()));
    }
    let mode = about.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(SecretError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = std::fs::read_to_string(path).map_err(failed)?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

impl FromStr for SecretRef {
    type Err = InvalidSecretRef;
    fn from_str(text: &str) -> Result<Self, InvalidSecretRef> {
        let named = |name: &str| {
            let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
            if valid { Ok(name.to_owned()) } else { Err(InvalidSecretRef::Name) }
        };
        if let Some(path) = text.strip_prefix("file:") {
            let path = crate::env::expand(path).map_err(InvalidSecretRef::Expansion)?;
            return if Path::new(&path).is_absolute() {
                Ok(Self::File(path.into()))
            } else {
                Err(InvalidSecretRef::Relative)
            };
        }
        if let Some(name) = text.strip_prefix("credential:") {
            return named(name).map(Self::Credential);
        }
        match text.strip_prefix("${env:").and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => named(name).map(Self::Env),
            None => Err(InvalidSecretRef::Literal),
        }
    }
}
impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "${{env:{name}}}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}
impl TryFrom<String> for SecretRef {
    type Error = InvalidSecretRef;
    fn try_from(text: String) -> Result<Self, InvalidSecretRef> {
        text.parse()
    }
}
impl From<SecretRef> for String {
    fn from(reference: SecretRef) -> String {
        reference.to_string()
    }
}
impl schemars::JsonSchema for SecretRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecretRef".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "Where a secret is: ${env:NAME}, file:/absolute/path or credential:NAME (systemd)",
            "pattern": r"^(\$\{env:[A-Za-z0-9_.-]+\}|file:.+|credential:[A-Za-z0-9_.-]+)$"
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};

    use super::*;

    fn no_environment(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn a_literal_secret_is_refused_and_not_repeated() {
        for text in ["hunter2", "${hunter2}", "", "env:hunter2", "${env:hunter2"] {
            let error = text.parse::<SecretRef>().unwrap_err();
            assert_eq!(error, InvalidSecretRef::Literal);
            assert!(!error.to_string().contains("hunter2"));
            assert!(error.to_string().contains("credential:NAME"));
        }
    }

    #[test]
    fn a_reference_reads_back_as_it_was_written() {
        for text in ["${env:DB_PASSWORD}", "file:/etc/farsite/db", "credential:db"] {
            assert_eq!(text.parse::<SecretRef>().unwrap().to_string(), text);
        }
        assert!("file:db".parse::<SecretRef>().is_err());
        assert!("credential:../db".parse::<SecretRef>().is_err());
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(***)");
    }

    #[test]
    fn a_secret_comes_from_the_environment_a_file_or_systemd() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("db");
        write(&file, "hunter2\n").unwrap();
        set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let at = folder.path().to_str().unwrap().to_owned();
        let environment = move |name: &str| match name {
            "DB" => Some("hunter2".to_owned()),
            "CREDENTIALS_DIRECTORY" => Some(at.clone()),
            _ => None,
        };
        for text in ["${env:DB}".to_owned(), format!("file:{}", file.display()), "credential:db".to_owned()] {
            let secret = text.parse::<SecretRef>().unwrap().resolve_with(&environment).unwrap();
            assert_eq!(secret.expose(), "hunter2", "{text}");
        }
    }

    #[test]
    fn a_secret_that_everybody_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("db");
        write(&file, "hunter2\n").unwrap();
        set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let error = SecretRef::File(file).resolve_with(&no_environment).unwrap_err().to_string();
        assert!(error.contains("mode 0644") && error.contains("chmod o= "), "{error}");
        assert!(!error.contains("hunter2"));
    }

    #[test]
    fn a_secret_that_is_not_there_says_where_it_was_looked_for() {
        let say = |text: &str| {
            text.parse::<SecretRef>().unwrap().resolve_with(&no_environment).unwrap_err().to_string()
        };
        assert!(say("${env:DB}").contains("variable DB is not set"));
        assert!(say("credential:db").contains("LoadCredential=db:"));
        assert!(say("file:/nonexistent/db").contains("/nonexistent/db"));
        assert!(say("file:/dev/null").contains("not a regular file"));
        assert!(SecretRef::Env("E".into()).resolve_with(&|_| Some(String::new())).is_err());
    }
}
