//! Where a MariaDB server is and who asks: an account comes in, connections and rows go out. What must hold: the
//! password is fetched when it is needed, and reaches a program by its environment only, never by its arguments.

use std::path::PathBuf;
use std::time::Duration;

use farsite_model::policy;
use farsite_model::secret::{Secret, SecretRef};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlRow, MySqlSslMode};
use sqlx::{AssertSqlSafe, Column, ConnectOptions, Connection, Row};
use tokio::process::Command;

use crate::SourceError;

/// One query of Farsite's own: all of them are small.
pub(crate) const QUERY_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(crate) enum Password {
    None,
    At(SecretRef),
    Known(Secret),
}

/// A server and an account on it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) user: String,
    pub(crate) password: Password,
}

/// Rows as text, as the server writes them.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Option<String>>>,
}

impl Rows {
    /// The text in the first row's column of this name.
    pub(crate) fn first(&self, column: &str) -> Option<&str> {
        let index = self.columns.iter().position(|c| c.eq_ignore_ascii_case(column))?;
        self.rows.first()?.get(index)?.as_deref()
    }
}

impl Server {
    pub(crate) fn of(item: &policy::Mariadb) -> Self {
        Self {
            socket: item.socket.clone(),
            host: item.host.clone(),
            port: item.port,
            user: item.user.clone().unwrap_or_else(process_user),
            password: item.password.clone().map_or(Password::None, Password::At),
        }
    }

    /// `/run/mysqld/mysqld.sock` or `db1:3306`, for messages.
    pub(crate) fn place(&self) -> String {
        match (&self.socket, &self.host) {
            (Some(socket), _) => socket.display().to_string(),
            (None, Some(host)) => format!("{host}:{}", self.port.unwrap_or(3306)),
            (None, None) => "(neither socket nor host)".to_owned(),
        }
    }

    fn secret(&self) -> Result<Option<Secret>, SourceError> {
        match &self.password {
            Password::None => Ok(None),
            Password::Known(secret) => Ok(Some(secret.clone())),
            Password::At(reference) => reference.resolve().map(Some).map_err(|error| {
                SourceError::new(format!("the password of {} at {}", self.user, self.place()), error)
            }),
        }
    }

    /// Tells one of MariaDB's programs where to connect and as whom. Call it before other arguments: `--no-defaults`
    /// must come first, so that no option file leads it elsewhere.
    pub(crate) fn connect_program(&self, command: &mut Command) -> Result<(), SourceError> {
        command.arg("--no-defaults").arg(format!("--user={}", self.user));
        match (&self.socket, &self.host) {
            (Some(socket), _) => {
                command.arg("--protocol=socket").arg(format!("--socket={}", socket.display()));
            }
            (None, host) => {
                command.arg("--protocol=tcp");
                command.arg(format!("--host={}", host.as_deref().unwrap_or("localhost")));
                command.arg(format!("--port={}", self.port.unwrap_or(3306)));
            }
        }
        if let Some(secret) = self.secret()? {
            command.env("MYSQL_PWD", secret.expose());
        }
        Ok(())
    }

    /// How a connection is made.
    pub(crate) fn options(&self) -> Result<MySqlConnectOptions, SourceError> {
        let what = || format!("connecting to MariaDB at {} as {}", self.place(), self.user);
        if self.socket.is_none() && self.host.is_none() {
            return Err(SourceError::new(what(), "the policy says neither `socket` nor `host`")
                .hint("name one of the two"));
        }
        // Session settings stay the server's own: what is asked here must not depend on them.
        let mut options = MySqlConnectOptions::new()
            .username(&self.user)
            .ssl_mode(MySqlSslMode::Disabled)
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None);
        match (&self.socket, &self.host) {
            (Some(socket), _) => options = options.socket(socket),
            (None, host) => {
                options =
                    options.host(host.as_deref().unwrap_or("localhost")).port(self.port.unwrap_or(3306));
            }
        }
        if let Some(secret) = self.secret()? {
            options = options.password(secret.expose());
        }
        Ok(options)
    }

    pub(crate) async fn connect(&self) -> Result<MySqlConnection, SourceError> {
        let what = || format!("connecting to MariaDB at {} as {}", self.place(), self.user);
        let options = self.options()?;
        match tokio::time::timeout(QUERY_LIMIT, options.connect()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(SourceError::new(what(), &error).hint(connect_hint(&error))),
            Err(_) => Err(crate::commands::timed_out(&what(), QUERY_LIMIT)),
        }
    }

    /// One query on a connection of its own.
    pub(crate) async fn query(&self, sql: &str) -> Result<Rows, SourceError> {
        let mut connection = self.connect().await?;
        let rows = query(&mut connection, sql, QUERY_LIMIT).await?;
        let _ = connection.close().await;
        Ok(rows)
    }
}

fn connect_hint(error: &sqlx::Error) -> &'static str {
    match code(error) {
        Some(1045 | 1698) => {
            "check the policy's `user` and `password`, and the account's rights on the server"
        }
        Some(1040) => "the server has no connection free: see its max_connections",
        Some(_) => "see the server's error log",
        None => "is the server running, and is this its socket or address? (`systemctl status mariadb`)",
    }
}

/// MariaDB's number of an error.
pub(crate) fn code(error: &sqlx::Error) -> Option<u16> {
    error
        .as_database_error()?
        .try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()
        .map(sqlx::mysql::MySqlDatabaseError::number)
}

/// Rows of one statement.
pub(crate) async fn query(
    connection: &mut MySqlConnection,
    sql: &str,
    limit: Duration,
) -> Result<Rows, SourceError> {
    let what = || format!("asking MariaDB: {}", shortened(sql));
    // Statements are Farsite's own or the operator's; nothing of a third party is pasted into them.
    let asked = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(connection);
    let found = match tokio::time::timeout(limit, asked).await {
        Ok(found) => found.map_err(|error| failed(&what(), &error))?,
        Err(_) => return Err(crate::commands::timed_out(&what(), limit)),
    };
    let mut rows = Rows::default();
    for row in &found {
        if rows.columns.is_empty() {
            rows.columns = row.columns().iter().map(|c| c.name().to_owned()).collect();
        }
        rows.rows.push(texts(row).map_err(|error| SourceError::new(what(), error))?);
    }
    Ok(rows)
}

fn failed(what: &str, error: &sqlx::Error) -> SourceError {
    let failed = SourceError::new(what, error);
    match code(error) {
        Some(1142 | 1227) => failed.hint("grant the account what it lacks; `farsite check` lists the rights"),
        _ => failed,
    }
}

fn texts(row: &MySqlRow) -> Result<Vec<Option<String>>, sqlx::Error> {
    (0..row.columns().len())
        .map(|index| {
            // The text protocol carries every type as text.
            let bytes: Option<Vec<u8>> = row.try_get_unchecked(index)?;
            Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
        })
        .collect()
}

/// A statement as it stands in a message.
pub(crate) fn shortened(sql: &str) -> String {
    let one_line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    if one_line.chars().count() > 120 {
        format!("{}…", one_line.chars().take(120).collect::<String>())
    } else {
        one_line
    }
}

/// A text as an SQL literal that means the same in every `sql_mode`: hexadecimal, read as UTF-8.
pub fn literal(text: &str) -> String {
    if text.is_empty() {
        return "''".to_owned();
    }
    format!("_utf8mb4 x'{}'", hex(text.as_bytes()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The name of the user that this process runs as, which is MariaDB's own default too.
pub(crate) fn process_user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let listed = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = listed.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    // Users of a directory service stand in no file; their login says who they are.
    found.or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "root".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(password: Password) -> Server {
        Server {
            socket: Some("/run/s.sock".into()),
            host: None,
            port: None,
            user: "farsite".into(),
            password,
        }
    }

    #[test]
    fn a_password_is_in_no_argument() {
        let mut command = Command::new("mariadb");
        server(Password::Known(Secret::new("tiger"))).connect_program(&mut command).unwrap();
        let command = command.as_std();
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        assert_eq!(arguments[0], "--no-defaults");
        assert!(arguments.iter().all(|a| !a.contains("tiger")), "{arguments:?}");
        assert!(command.get_envs().any(|(name, value)| name == "MYSQL_PWD" && value.is_some()));
    }

    #[tokio::test]
    async fn a_missing_server_says_where_it_was_looked_for() {
        let error = server(Password::None).connect().await.unwrap_err().to_string();
        assert!(error.contains("/run/s.sock") && error.contains("hint:"), "{error}");
    }

    #[test]
    fn a_literal_holds_quotes_without_quoting() {
        assert_eq!(literal("a'b"), "_utf8mb4 x'612762'");
        assert_eq!(literal(""), "''");
    }
}
