//! `check-catalog`: whoever asks Keystone where a service is, is sent somewhere that answers. What must hold: an address that
//! nobody answers at is never passed over; lists that work prove nothing of it, because nobody has followed them.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::ItemKind;
use farsite_runbook::action::{Action, ActionContext, ActionError, Outcome, parameters};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Held;
use crate::group_run::failed;

/// One attempt; a service that has just begun may not listen yet, so there are several.
const CONNECT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);
const QUESTION: &str =
    "SELECT interface, url FROM keystone.endpoint WHERE enabled = 1 ORDER BY interface, url";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct With {
    /// Which interfaces of the catalog are followed, with spaces between.
    interfaces: String,
}

pub(crate) struct CheckCatalog(pub(super) Held);

/// The door of an address, `host:port`, and its interfaces and how many endpoints begin with it.
type Doors = BTreeMap<String, BTreeMap<String, usize>>;

fn door(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?.rsplit('@').next()?;
    let port = match scheme {
        "https" => 443,
        _ => 80,
    };
    // `[::1]` has colons of its own.
    let behind = host.rsplit(']').next()?;
    Some(if behind.contains(':') { host.to_owned() } else { format!("{host}:{port}") })
        .filter(|door| !door.starts_with(':'))
}

fn doors(rows: &[Vec<Option<String>>], interfaces: &str) -> Result<Doors, String> {
    let wanted: Vec<&str> = interfaces.split_whitespace().collect();
    let mut doors = Doors::new();
    for row in rows {
        let [Some(interface), Some(url)] = &row[..] else { continue };
        if wanted.contains(&interface.as_str()) {
            let door = door(url)
                .ok_or_else(|| format!("the catalog's {interface} endpoint {url:?} is no address"))?;
            *doors.entry(door).or_default().entry(interface.clone()).or_default() += 1;
        }
    }
    Ok(doors)
}

/// Until somebody accepts a connection, or the time is over: then why not.
async fn answers(door: &str, until: Instant) -> Result<(), String> {
    loop {
        let why = match tokio::time::timeout(CONNECT, TcpStream::connect(door)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", CONNECT.as_secs()),
        };
        if Instant::now() + PAUSE >= until {
            return Err(why);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[async_trait]
impl Action for CheckCatalog {
    fn name(&self) -> &'static str {
        "check-catalog"
    }
    fn summary(&self) -> &'static str {
        "somebody answers at every address that Keystone's catalog gives to clients, for these `interfaces`"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        parameters::<With>(with).map(|_| ())
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(1)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        if !run.databases().iter().any(|item| item.kind == ItemKind::Mariadb) {
            return Ok(Outcome::said("the point holds no server's database: no catalog was followed"));
        }
        let (database, item) = run.database(None)?;
        let fail = |error: String| failed(context, format!("{}: {error}", item.id));
        for table in ["endpoint", "alembic_version"] {
            if !database.has_table("keystone", table).await.map_err(fail)? {
                return Ok(Outcome::said("the database has no catalog of Keystone's making"));
            }
        }
        let rows = database.query(QUESTION).await.map_err(fail)?;
        let doors = doors(&rows, &with.interfaces).map_err(fail)?;
        let until = Instant::now() + context.timeout.mul_f32(0.8);
        let mut asked: JoinSet<_> = doors
            .keys()
            .cloned()
            .map(|door| async move {
                let answered = answers(&door, until).await;
                (door, answered)
            })
            .collect();
        let mut lost = BTreeMap::new();
        while let Some(joined) = asked.join_next().await {
            let (door, answered) = joined.map_err(|error| failed(context, error))?;
            if let Err(why) = answered {
                lost.insert(door, why);
            }
        }
        if !lost.is_empty() {
            let lines: Vec<String> =
                lost.iter().map(|(at, why)| format!("{at} ({}): {why}", of(&doors[at]))).collect();
            return Err(failed(
                context,
                format!(
                    "clients and services are sent to where nobody answers:\n  {}\n  hint: addresses of the lost site belong into `rewrite.urls` of farsite.yaml (then `farsite promotion cancel` and promote again); endpoints of services that do not run here are to be disabled (`openstack endpoint set --disable`), and `--resume`; what only this host cannot reach is no fault: `farsite promotion skip --step check-catalog`, and next time the variable catalog_interfaces",
                    lines.join("\n  ")
                ),
            ));
        }
        let count: usize = doors.values().flat_map(BTreeMap::values).sum();
        let outcome = Outcome::said(format!("all {count} endpoints of the catalog lead to somebody"));
        Ok(doors.iter().fold(outcome, |outcome, (at, interfaces)| outcome.with(at, of(interfaces))))
    }
}

/// `3 admin, 3 public`
fn of(interfaces: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = interfaces.iter().map(|(name, count)| format!("{count} {name}")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_is_host_and_port_of_an_address() {
        for (url, due) in [
            ("http://api.south:8776/v3/%(tenant_id)s", "api.south:8776"),
            ("https://api.south", "api.south:443"),
            ("http://api.south/volume/v3", "api.south:80"),
            ("http://[fd00::1]:5000/v3", "[fd00::1]:5000"),
            ("https://[fd00::1]/v3", "[fd00::1]:443"),
        ] {
            assert_eq!(door(url).as_deref(), Some(due));
        }
        assert_eq!(door("api.south:8776"), None);
    }

    #[test]
    fn endpoints_are_counted_by_their_door_and_others_interfaces_left_out() {
        let row = |interface: &str, url: &str| vec![Some(interface.to_owned()), Some(url.to_owned())];
        let rows =
            [row("public", "http://a:1/v3"), row("public", "http://a:1/v2"), row("admin", "http://b:2")];
        let found = doors(&rows, "public internal").unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a:1"]);
        assert_eq!(of(&found["a:1"]), "2 public");
        assert!(doors(&[row("public", "nonsense")], "public").unwrap_err().contains("is no address"));
    }

    #[tokio::test]
    async fn who_accepts_a_connection_answers_and_a_closed_door_is_told_with_its_reason() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let soon = || Instant::now() + Duration::from_millis(100);
        assert_eq!(answers(&at, soon()).await, Ok(()));
        drop(listener);
        assert!(answers(&at, soon()).await.unwrap_err().contains("refused"));
    }
}
