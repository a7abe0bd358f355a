//! The HTTP server: which address answers what, how long it may take, and how it ends.

use std::future::{Future, IntoFuture};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use farsite_model::status::GroupStatus;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::page::Pages;
use crate::{STATE_LIMIT, StateSource, StatusDocument, metrics};

/// How long answers under way may take after the shutdown was asked for.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Nothing may be fetched from elsewhere, and no other page may frame this one. Style and script are inline, so
/// that the page is one file; what comes from the state is escaped where it is written.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error(
        "the dashboard cannot listen on {address:?}: {source}; replication does not depend on it. \
         Hint: set `web:` in farsite.yaml to a free address such as 127.0.0.1:7400"
    )]
    Bind { address: String, source: std::io::Error },
    #[error("the dashboard at {address} stopped: {source}; replication does not depend on it")]
    Serve { address: SocketAddr, source: std::io::Error },
}

/// A server that holds its address and does not answer yet, so that a service can say it is ready in between.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Takes `address` (`127.0.0.1:7400`, `[::1]:7400`, `localhost:7400`; port 0 takes a free one).
    pub async fn bind(address: &str) -> Result<Self, WebError> {
        let failed = |source| WebError::Bind { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address with the port that was really taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` completes, then lets answers under way finish, five seconds at most.
    pub async fn run(
        self,
        source: Arc<dyn StateSource>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), WebError> {
        let address = self.address;
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let serving = axum::serve(self.listener, routes(source))
            .with_graceful_shutdown(async move { stopped.notified().await })
            .into_future();
        tokio::pin!(serving);
        let done = tokio::select! {
            done = &mut serving => done,
            () = shutdown => {
                stop.notify_one();
                // A client that opened a connection and says nothing must not keep the agent from ending.
                tokio::time::timeout(DRAIN_LIMIT, serving).await.unwrap_or(Ok(()))
            }
        };
        done.map_err(|source| WebError::Serve { address, source })
    }
}

/// [`Server::bind`] and [`Server::run`] in one.
pub async fn serve(
    address: &str,
    source: Arc<dyn StateSource>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), WebError> {
    Server::bind(address).await?.run(source, shutdown).await
}

struct App {
    source: Arc<dyn StateSource>,
    pages: Pages,
}

impl App {
    async fn groups(&self) -> Result<Vec<GroupStatus>, NoState> {
        tokio::time::timeout(STATE_LIMIT, self.source.groups()).await.map_err(|_| NoState)
    }
}

/// The state did not come in time. That says nothing about replication, and the answer says so.
struct NoState;

impl NoState {
    const ERROR: &str = "the state of the groups could not be read in time";
    const HINT: &str = "replication may be well: try `farsite status` on this host, and `farsite check` for the \
                        reachability of the replica store";

    fn sentence() -> String {
        format!("{}. {}.", Self::ERROR, Self::HINT)
    }
}

fn routes(source: Arc<dyn StateSource>) -> Router {
    Router::new()
        .route("/", get(dashboard))
        .route("/api/status", get(status))
        .route("/metrics", get(prometheus))
        .route("/healthz", get(health))
        .fallback(nowhere)
        .with_state(Arc::new(App { source, pages: Pages::new() }))
}

async fn dashboard(State(app): State<Arc<App>>) -> Response {
    let (code, page) = match app.groups().await {
        Ok(groups) => (StatusCode::OK, app.pages.dashboard(&groups, Timestamp::now())),
        Err(NoState) => (StatusCode::SERVICE_UNAVAILABLE, app.pages.without_state(&NoState::sentence())),
    };
    html(code, page)
}

/// JSON, or with `?format=cards` what the dashboard shows of it: a page that is open refreshes itself from there,
/// so that there is one renderer.
async fn status(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let cards = query.is_some_and(|query| query.split('&').any(|pair| pair == "format=cards"));
    match app.groups().await {
        Ok(groups) if cards => html(StatusCode::OK, app.pages.cards(&groups, Timestamp::now())),
        Ok(groups) => answer(
            StatusCode::OK,
            Json(StatusDocument { generated: Timestamp::now(), groups }).into_response(),
        ),
        Err(NoState) => answer(
            StatusCode::SERVICE_UNAVAILABLE,
            Json(serde_json::json!({ "error": NoState::ERROR, "hint": NoState::HINT })).into_response(),
        ),
    }
}

async fn prometheus(State(app): State<Arc<App>>) -> Response {
    match app.groups().await {
        Ok(groups) => {
            let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
            answer(StatusCode::OK, ([kind], metrics::exposition(&groups)).into_response())
        }
        Err(NoState) => answer(StatusCode::SERVICE_UNAVAILABLE, (NoState::sentence() + "\n").into_response()),
    }
}

/// The server answers; it does not say that the groups are well, and does not wait for their state.
async fn health() -> Response {
    answer(StatusCode::OK, "ok\n".into_response())
}

async fn nowhere() -> Response {
    answer(
        StatusCode::NOT_FOUND,
        "not here; there are /, /api/status, /metrics and /healthz\n".into_response(),
    )
}

fn html(code: StatusCode, rendered: Result<String, minijinja::Error>) -> Response {
    match rendered {
        Ok(text) => {
            let headers: [(HeaderName, &str); 2] = [
                (header::CONTENT_TYPE, "text/html; charset=utf-8"),
                (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
            ];
            answer(code, (headers, text).into_response())
        }
        Err(error) => answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the page could not be drawn: {error}; /api/status has the same facts\n").into_response(),
        ),
    }
}

/// An old answer is worse than none: nothing may be kept by a browser or a proxy.
fn answer(code: StatusCode, mut response: Response) -> Response {
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}
