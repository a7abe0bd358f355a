//! One cloud, asked through its APIs: credentials become a token when the first question needs one, and again when it is
//! refused. What must hold: nothing is changed there; every question ends within its limit, and at once when it is dropped;
//! a question that is not answered is an error and never an empty answer; no secret is in an error or a log.

use std::sync::Arc;
use std::time::Duration;

use farsite_model::secret::Secret;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, OnceCell};

use crate::catalog::Answer;
use crate::credentials::Credentials;
use crate::{AskError, Cloud, CloudsError, Service, Token};

/// The longest that one answer may have, in bytes: a thousand volumes are about two MiB.
const LONGEST_ANSWER: usize = 64 << 20;
/// So much of what a service says about an error is told on, in characters.
const LONGEST_WORDS: usize = 300;

/// What a question may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until the connection stands.
    pub connect: Duration,
    /// One try, from the first byte sent to the last one read.
    pub call: Duration,
    /// How often a question is put that only reads, when a service is not reached, is busy or fails.
    pub tries: u32,
    /// The pause before the second try; doubled with each. A `Retry-After` goes before it, up to `longest_pause`.
    pub pause: Duration,
    pub longest_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            call: Duration::from_mins(1),
            tries: 5,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(20),
        }
    }
}

type ReadCredentials = dyn Fn() -> Result<Credentials, CloudsError> + Send + Sync;

/// A cloud that can be asked.
pub struct Client {
    cloud: Cloud,
    region: Option<String>,
    http: reqwest::Client,
    pub(crate) limits: Limits,
    /// Read each time that a token is asked for, and at no other time.
    credentials: Box<ReadCredentials>,
    token: Mutex<Option<Arc<Token>>>,
    pub(crate) block_storage: OnceCell<crate::volumes::Abilities>,
}

impl Client {
    /// `region` goes before the cloud's own.
    pub fn new(
        cloud: Cloud,
        region: Option<String>,
        limits: Limits,
        credentials: impl Fn() -> Result<Credentials, CloudsError> + Send + Sync + 'static,
    ) -> Result<Self, AskError> {
        let mut http = reqwest::Client::builder()
            .connect_timeout(limits.connect)
            .timeout(limits.call)
            // Elsewhere the token would go along.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("farsite/", env!("CARGO_PKG_VERSION")));
        if let Some(file) = &cloud.cacert {
            let unusable = |why: String| AskError::Certificates { file: file.clone(), why };
            let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
            let certificates =
                Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
            http = http.tls_certs_merge(certificates);
        }
        if !cloud.verify {
            http = http.tls_danger_accept_invalid_certs(true);
        }
        let http = http.build().map_err(|error| AskError::Client(cause(&error)))?;
        Ok(Self {
            region: region.or_else(|| cloud.region.clone()),
            cloud,
            http,
            limits,
            credentials: Box::new(credentials),
            token: Mutex::default(),
            block_storage: OnceCell::new(),
        })
    }

    /// The cloud's name in clouds.yaml.
    pub fn name(&self) -> &str {
        &self.cloud.name
    }

    /// The token that is held, or a new one.
    pub async fn token(&self) -> Result<Arc<Token>, AskError> {
        let mut held = self.token.lock().await;
        if let Some(token) = held.as_ref() {
            return Ok(token.clone());
        }
        let token = Arc::new(self.authenticate().await?);
        *held = Some(token.clone());
        Ok(token)
    }

    /// Where a service of this cloud's region is asked.
    pub async fn endpoint(&self, service: Service) -> Result<String, AskError> {
        self.token().await?.endpoint(service, &self.cloud, self.region.as_deref())
    }

    async fn authenticate(&self) -> Result<Token, AskError> {
        let what = "asking Keystone for a token";
        let url = format!("{}/auth/tokens", self.cloud.auth_url.identity_v3());
        let body = (self.credentials)()?.request();
        let mut tries = 0;
        let response = loop {
            tries += 1;
            match self.http.post(&url).json(&body).send().await {
                Ok(response) => break response,
                // Nothing was sent yet, so once more does no harm.
                Err(error) if error.is_connect() && tries < self.limits.tries => {
                    self.pause(tries, None).await;
                }
                Err(error) => return Err(self.unreachable(what, &error)),
            }
        };
        let status = response.status();
        let id =
            response.headers().get("x-subject-token").and_then(|id| Some(Secret::new(id.to_str().ok()?)));
        let bytes = self.bytes(what, response).await?;
        match (status, id) {
            (StatusCode::UNAUTHORIZED, _) => {
                Err(AskError::Refused { cloud: self.cloud.name.clone(), says: words(&bytes, None) })
            }
            (status, Some(id)) if status.is_success() => {
                let answer: Answer = self.parse(what, &bytes)?;
                tracing::debug!(cloud = self.cloud.name, "a token was given");
                Ok(Token::new(id, answer))
            }
            (status, None) if status.is_success() => Err(AskError::Unreadable {
                cloud: self.cloud.name.clone(),
                what: what.to_owned(),
                why: "no token came with it".to_owned(),
            }),
            (status, _) => Err(self.status(what, status, &bytes, None)),
        }
    }

    /// Asks a service, and reads the JSON that it answers. `path` stands behind the service's address; `version` is a
    /// header's name and value.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        service: Service,
        path: &str,
        query: &[(String, String)],
        version: Option<&str>,
    ) -> Result<T, AskError> {
        let url = format!("{}{path}", self.endpoint(service).await?);
        self.get_at(service, &url, query, version).await
    }

    /// The same at an address of one's own making.
    pub(crate) async fn get_at<T: DeserializeOwned>(
        &self,
        service: Service,
        url: &str,
        query: &[(String, String)],
        version: Option<&str>,
    ) -> Result<T, AskError> {
        let what = format!("GET {url} ({service})");
        let mut url = Url::parse(url).map_err(|error| AskError::Unreadable {
            cloud: self.cloud.name.clone(),
            what: "the catalog".to_owned(),
            why: format!("{url} is no address: {error}"),
        })?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut was_renewed = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let token = self.token().await?;
            let mut request = self.ask(url.as_str(), &token);
            if let Some(version) = version {
                request = request.header("openstack-api-version", version);
            }
            let is_last = tries >= self.limits.tries;
            let (status, headers, bytes) = match self.send(&what, request).await {
                Ok(answered) => answered,
                Err(error) if is_last => return Err(error),
                Err(error) => {
                    tracing::debug!("asking again: {error}");
                    self.pause(tries, None).await;
                    continue;
                }
            };
            if status.is_success() {
                return self.parse(&what, &bytes);
            }
            if status == StatusCode::UNAUTHORIZED && !was_renewed {
                was_renewed = true;
                self.drop_token(&token).await;
                continue;
            }
            let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            if !may_pass || is_last {
                return Err(self.status(&what, status, &bytes, Some(&token)));
            }
            tracing::debug!("asking again: {what} was answered with {status}");
            self.pause(tries, Some(&headers)).await;
        }
    }

    /// A question with this token.
    pub(crate) fn ask(&self, url: &str, token: &Token) -> RequestBuilder {
        self.http.get(url).header("x-auth-token", secret_header(&token.id))
    }

    async fn send(
        &self,
        what: &str,
        request: RequestBuilder,
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>), AskError> {
        let response = request.send().await.map_err(|error| self.unreachable(what, &error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok((status, headers, self.bytes(what, response).await?))
    }

    pub(crate) async fn bytes(&self, what: &str, mut response: Response) -> Result<Vec<u8>, AskError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(what, &error))? {
            if bytes.len() + chunk.len() > LONGEST_ANSWER {
                return Err(AskError::Unreadable {
                    cloud: self.cloud.name.clone(),
                    what: what.to_owned(),
                    why: format!("it is longer than {} MiB", LONGEST_ANSWER >> 20),
                });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn parse<T: DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T, AskError> {
        serde_json::from_slice(bytes).map_err(|error| AskError::Unreadable {
            cloud: self.cloud.name.clone(),
            what: what.to_owned(),
            why: error.to_string(),
        })
    }

    /// Another question may have renewed it already.
    pub(crate) async fn drop_token(&self, refused: &Arc<Token>) {
        let mut held = self.token.lock().await;
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, refused)) {
            *held = None;
        }
    }

    pub(crate) async fn pause(&self, tries: u32, headers: Option<&HeaderMap>) {
        let asked = headers
            .and_then(|headers| headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let pause = asked.unwrap_or(self.limits.pause * (1 << (tries - 1).min(16)));
        tokio::time::sleep(pause.min(self.limits.longest_pause)).await;
    }

    pub(crate) fn unreachable(&self, what: &str, error: &reqwest::Error) -> AskError {
        let (cloud, what) = (self.cloud.name.clone(), what.to_owned());
        if error.is_timeout() && !error.is_connect() {
            return AskError::TimedOut { cloud, what, limit: self.limits.call };
        }
        AskError::Unreachable { cloud, what, why: cause(error) }
    }

    pub(crate) fn status(
        &self,
        what: &str,
        status: StatusCode,
        bytes: &[u8],
        token: Option<&Token>,
    ) -> AskError {
        let (cloud, what) = (self.cloud.name.clone(), what.to_owned());
        let says = words(bytes, token.map(|token| &token.id));
        match (status, token) {
            (StatusCode::FORBIDDEN, Some(token)) => {
                AskError::Forbidden { cloud, what, user: token.holder(), says }
            }
            _ => AskError::Status { cloud, what, status: status.as_u16(), says },
        }
    }
}

/// A header whose value is shown nowhere.
fn secret_header(secret: &Secret) -> reqwest::header::HeaderValue {
    // Keystone's tokens are letters, digits, `-` and `_`; another one is refused by the service instead.
    let mut value = reqwest::header::HeaderValue::from_str(secret.expose())
        .unwrap_or_else(|_| reqwest::header::HeaderValue::from_static("unusable"));
    value.set_sensitive(true);
    value
}

/// The innermost reasons, without the address: it stands in the message already, and a query may be part of it.
fn cause(error: &reqwest::Error) -> String {
    let mut reasons = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        reasons.push(reason.to_string());
        source = reason.source();
    }
    reasons.dedup();
    if reasons.is_empty() {
        let kind = if error.is_timeout() { "it took too long" } else { "it broke off" };
        return kind.to_owned();
    }
    reasons.join(": ")
}

/// What a service says about an error: `{"itemNotFound": {"message": …}}`, or text.
fn words(bytes: &[u8], token: Option<&Secret>) -> String {
    let message = serde_json::from_slice::<serde_json::Value>(bytes).ok().and_then(|value| {
        let inner = value.as_object()?.values().next()?;
        Some(inner.get("message")?.as_str()?.to_owned())
    });
    let text = message.unwrap_or_else(|| String::from_utf8_lossy(bytes).into_owned());
    let text = without_tags(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    let text = match token {
        Some(token) if !token.expose().is_empty() => text.replace(token.expose(), "***"),
        _ => text,
    };
    match text.char_indices().nth(LONGEST_WORDS) {
        _ if text.is_empty() => "it says nothing more".to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What stands before a service answers in HTML.
fn without_tags(text: &str) -> String {
    if !text.trim_start().starts_with('<') {
        return text.to_owned();
    }
    let outside = text.split('<').map(|part| part.split_once('>').map_or(part, |(_, behind)| behind));
    outside.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_says_is_shortened_and_without_the_token() {
        let token = Secret::new("hunter2");
        let json = br#"{"badRequest": {"code": 400, "message": "no\n hunter2 here"}}"#;
        assert_eq!(words(json, Some(&token)), "no *** here");
        assert_eq!(words(b"", None), "it says nothing more");
        assert_eq!(
            words(b"<html><body><h1>503 Busy</h1>\nNobody is here.</body>", None),
            "503 Busy Nobody is here."
        );
        assert!(words("ü".repeat(1000).as_bytes(), None).chars().count() <= LONGEST_WORDS + 1);
    }
}
