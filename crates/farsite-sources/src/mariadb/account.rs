//! A server as one of its accounts sees it: a door, a name and a password come in; rows go out, or whether the server refused
//! the account or was not there to be asked. What must hold: a refusal is told apart from silence; no password is in an error.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use farsite_model::secret::Secret;
use sqlx::{ConnectOptions, Connection};

use super::server::{self, Password, Server};

/// The longest that one door is knocked at: a server that is there answers within milliseconds.
const LIMIT: Duration = Duration::from_secs(10);
/// What a server says of an account that it does not let in: wrong password, no password, a host that it does not take it from, an
/// expired password, a locked account (MariaDB's Server Error Codes).
const REFUSALS: [u16; 6] = [1045, 1698, 1130, 1820, 1862, 4151];

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    Socket(PathBuf),
    Tcp { host: String, port: u16 },
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Why there are no rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRows {
    /// The server is there and does not let the account in.
    #[error("{0}")]
    Refused(String),
    /// Nobody answered, or something else went wrong: nothing is known of the account.
    #[error("{0}")]
    NotAsked(String),
}

/// Rows of one statement, as text, asked by this account. Never takes longer than some twenty seconds.
pub async fn ask_as(
    door: &Door,
    name: &str,
    password: Option<&Secret>,
    sql: &str,
) -> Result<Vec<Vec<Option<String>>>, NoRows> {
    let (socket, host, port) = match door {
        Door::Socket(path) => (Some(path.clone()), None, None),
        Door::Tcp { host, port } => (None, Some(host.clone()), Some(*port)),
    };
    let password = password.map_or(Password::None, |secret| Password::Known(secret.clone()));
    let server = Server { socket, host, port, user: name.to_owned(), password };
    let options = server.options().map_err(|error| NoRows::NotAsked(error.to_string()))?;
    let mut connection = match tokio::time::timeout(LIMIT, options.connect()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) if server::code(&error).is_some_and(|code| REFUSALS.contains(&code)) => {
            return Err(NoRows::Refused(format!("{door}: {error}")));
        }
        Ok(Err(error)) => return Err(NoRows::NotAsked(format!("{door}: {error}"))),
        Err(_) => return Err(NoRows::NotAsked(format!("{door}: no answer within {}s", LIMIT.as_secs()))),
    };
    let rows = server::query(&mut connection, sql, LIMIT).await;
    let _ = tokio::time::timeout(LIMIT, connection.close()).await;
    rows.map(|rows| rows.rows).map_err(|error| NoRows::NotAsked(format!("{door}: {error}")))
}
