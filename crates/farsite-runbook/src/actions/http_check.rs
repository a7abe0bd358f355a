//! `http-check`: asks an HTTP address and compares status and body.

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::silence;
use crate::action::{Action, ActionContext, ActionError, Outcome, parameters};

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
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(1)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        // Leave time to say what was seen last.
        let give_up = tokio::time::Instant::now() + context.timeout.mul_f32(0.9);
        let mut before = None;
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
                Err(_) => silence(patience, ANSWER, before),
            };
            if tokio::time::Instant::now() + PAUSE >= give_up {
                return Err(ActionError::failed(format!("{}: {seen}", with.url)));
            }
            before = Some(seen);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::tests::context;

    #[tokio::test]
    async fn an_attempt_that_the_end_of_the_time_cuts_does_not_hide_what_was_seen_before() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            // The first one is answered; the next one never is.
            let (mut first, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = first.read(&mut request).await;
            first.write_all(b"HTTP/1.1 503 busy\r\n\r\n").await.unwrap();
            drop(first);
            let _held = listener.accept().await.unwrap();
            std::future::pending::<()>().await;
        });
        let with = serde_json::json!({ "url": url });
        let context = context(Duration::from_secs(2));
        let Err(error) = HttpCheck.run(&context, &with).await else { panic!("it never answered 200") };
        assert!(error.to_string().contains("it answered 503, not 200"), "{error}");
    }

    #[tokio::test]
    async fn silence_from_the_beginning_is_called_silence() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let with = serde_json::json!({ "url": format!("http://{}/", listener.local_addr().unwrap()) });
        let Err(error) = HttpCheck.run(&context(Duration::from_secs(1)), &with).await else { panic!() };
        assert!(error.to_string().contains("no answer within 0.9s"), "{error}");
    }
}
