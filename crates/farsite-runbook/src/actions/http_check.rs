//! `http-check`: asks an HTTP address and compares status and body.

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::action::{Action, ActionContext, ActionError, Done, Outcome, parameters};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    /// `http://host[:port]/path`; for https use `command` with a client of your choice.
    url: String,
    #[serde(default = "ok")]
    status: u16,
    /// Text that the body must hold.
    #[serde(default)]
    contains: Option<String>,
}
fn ok() -> u16 {
    200
}

pub(crate) struct HttpCheck;

/// One answer is not waited for longer.
const ANSWER: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);
const BODY_LIMIT_BYTES: usize = 1 << 20;

fn split(url: &str) -> Result<(String, String), String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url:?}: only http:// is spoken here"))?;
    let (host, path) = rest.split_once('/').map_or((rest, "/".to_owned()), |(h, p)| (h, format!("/{p}")));
    Ok((host.to_owned(), path))
}

/// One request without any library: HTTP/1.1, `Connection: close`. Returns status and body.
pub(crate) async fn request(method: &str, url: &str, body: &str) -> Result<(u16, String), ActionError> {
    let (host, path) = split(url).map_err(ActionError::Failed)?;
    let address = if host.contains(':') { host.clone() } else { format!("{host}:80") };
    let fail = |why: std::io::Error| ActionError::failed(format!("{url}: {why}"));
    let mut stream = TcpStream::connect(&address).await.map_err(fail)?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: farsite\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.map_err(fail)?;
    let mut answer = Vec::new();
    stream.take(BODY_LIMIT_BYTES as u64).read_to_end(&mut answer).await.map_err(fail)?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| ActionError::failed(format!("{url}: this is no HTTP answer")))?;
    Ok((status, body.to_owned()))
}

#[async_trait]
impl Action for HttpCheck {
    fn name(&self) -> &'static str {
        "http-check"
    }
    fn summary(&self) -> &'static str {
        "asks `url` until it answers `status` (200) and its body holds `contains`, or the time is over"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        let with: With = parameters(with)?;
        if with.url.contains("{{") { Ok(()) } else { split(&with.url).map(|_| ()) }
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(1)
    }
    async fn check(&self, _: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        Ok(Done::No)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        // Leave time to say what was seen last.
        let give_up = tokio::time::Instant::now() + context.timeout.mul_f32(0.9);
        loop {
            // What was seen last is said before the step's time is over, however slow the answer is.
            let patience = give_up.saturating_duration_since(tokio::time::Instant::now()).min(ANSWER);
            let seen = match tokio::time::timeout(patience, request("GET", &with.url, "")).await {
                Ok(Ok((status, body))) if status == with.status => match &with.contains {
                    Some(text) if !body.contains(text) => {
                        format!("{status}, but the body does not hold {text:?}")
                    }
                    _ => return Ok(Outcome::said(format!("{} answered {status}", with.url))),
                },
                Ok(Ok((status, _))) => format!("it answered {status}, not {}", with.status),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {:.1}s", patience.as_secs_f32()),
            };
            if tokio::time::Instant::now() + PAUSE >= give_up {
                return Err(ActionError::failed(format!("{}: {seen}", with.url)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
