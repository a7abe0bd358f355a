//! An S3 server in this process, on loopback, for the demo and the tests. A folder and credentials come in; an
//! endpoint goes out. The storage is s3s-fs, which looks first and writes afterwards: the front in this crate holds a
//! lock per key around every write, so that `If-None-Match: *` is atomic, refuses what some credentials may not do, and
//! injects faults.
//!
//! Not a server for production: one folder, no redundancy.

mod bodies;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpResponse};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Who may connect, and what is refused to them.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    /// DELETE and writes without `If-None-Match: *` answer 403: what a bucket policy does for agents. Uploads in parts
    /// are writes when they are completed; one's own may be ended.
    pub may_only_add: bool,
}

/// A request as a fault rule sees it.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: String,
    /// `/bucket/key`
    pub path: String,
    /// Without the `?`; empty when there is none.
    pub query: String,
    /// Counts all calls from 1.
    pub number: u64,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// This status, and nothing is done.
    Refuse(u16),
    /// The work is done, but the answer is this status: a lost answer.
    LoseAnswer(u16),
    /// The work is done, and the connection is closed without an answer.
    HangUp,
    /// Half of the request is read, nothing is done, and the connection is closed.
    CutRequest,
    /// The work is done, and the connection is cut in the middle of the answer's body. An answer without one is lost.
    CutAnswer,
    /// The request is delivered twice, one after the other; the second one's answer is given.
    Twice,
    Delay(Duration),
}

/// Decides the fate of every call.
pub type Faults = Arc<dyn Fn(&Call) -> Fault + Send + Sync>;

/// A running server; it stops when dropped.
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
    front: Front,
}

impl Server {
    /// Serves `folder` on `127.0.0.1:port` (0: a free one). Buckets are folders below it.
    pub async fn start(folder: &Path, port: u16, credentials: Vec<Credentials>) -> std::io::Result<Self> {
        let storage = s3s_fs::FileSystem::new(folder).map_err(|error| {
            std::io::Error::other(format!("s3 storage in {}: {error:?}", folder.display()))
        })?;
        let mut auth = SimpleAuth::new();
        for one in &credentials {
            auth.register(one.access_key.clone(), one.secret_key.clone().into());
        }
        let mut builder = S3ServiceBuilder::new(storage);
        builder.set_auth(auth);
        let front = Front {
            inner: builder.build(),
            state: Arc::new(State {
                locks: Mutex::default(),
                may_only_add: credentials
                    .into_iter()
                    .filter(|c| c.may_only_add)
                    .map(|c| c.access_key)
                    .collect(),
                faults: Mutex::new(Arc::new(|_| Fault::None)),
                calls: Mutex::new(0),
                careless: std::sync::atomic::AtomicBool::new(false),
                blind_completions: std::sync::atomic::AtomicBool::new(false),
            }),
        };
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        let service = front.clone();
        let task = tokio::spawn(async move {
            // Connections end with this task: a server that is gone answers nobody.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                while connections.try_join_next().is_some() {}
                let Ok((socket, _)) = listener.accept().await else { continue };
                // Small answers must not wait for the acknowledgment of the packet before.
                let _ = socket.set_nodelay(true);
                let service = service.clone();
                connections.spawn(async move {
                    // A client that hangs up is not an event.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Ok(Self { address, task, front })
    }

    /// `http://127.0.0.1:port`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on every call is shown to `faults`.
    pub fn set_faults(&self, faults: Faults) {
        *self.front.state.faults.lock().expect("no holder of this lock panics") = faults;
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        *self.front.state.calls.lock().expect("no holder of this lock panics")
    }

    /// Takes the lock per key away: what is left is s3s-fs as it is, which looks first and writes afterwards. For tests of
    /// the race that must find this out.
    pub fn write_carelessly(&self) {
        self.front.state.careless.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    /// Completions of uploads in parts ignore `If-None-Match` from now on, as some providers do.
    pub fn complete_blindly(&self) {
        self.front.state.blind_completions.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    /// Makes a bucket without asking over the network.
    pub fn create_bucket(folder: &Path, name: &str) -> std::io::Result<()> {
        std::fs::create_dir_all(folder.join(name))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct State {
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    may_only_add: Vec<String>,
    faults: Mutex<Faults>,
    calls: Mutex<u64>,
    careless: std::sync::atomic::AtomicBool,
    blind_completions: std::sync::atomic::AtomicBool,
}

#[derive(Clone)]
struct Front {
    inner: S3Service,
    state: Arc<State>,
}

impl hyper::service::Service<Request<Incoming>> for Front {
    type Response = HttpResponse;
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let front = self.clone();
        Box::pin(async move { front.answer(request).await })
    }
}

impl Front {
    async fn answer(&self, request: Request<Incoming>) -> Result<HttpResponse, HttpError> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let fault = {
            let number = {
                let mut calls = self.state.calls.lock().expect("no holder of this lock panics");
                *calls += 1;
                *calls
            };
            let faults = self.state.faults.lock().expect("no holder of this lock panics").clone();
            let query = request.uri().query().unwrap_or_default().to_owned();
            faults(&Call { method: method.to_string(), path: path.clone(), query, number })
        };
        if self.refuses(&request) {
            return Ok(plain(403));
        }
        let (head, body) = request.into_parts();
        let mut body = Body::from(body);
        match fault {
            Fault::Refuse(status) => return Ok(plain(status)),
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::CutRequest => {
                use hyper::body::Body as _;
                // One frame at most: the rest of it never arrives.
                let mut body = std::pin::pin!(body);
                let _ = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await;
                return Err(hung_up());
            }
            Fault::Twice => {
                let Some(bytes) = bodies::whole(body).await else { return Err(hung_up()) };
                let first = Request::from_parts(head.clone(), Body::from(bytes.clone()));
                let answer = self.act(&path, &method, first).await?;
                // The first answer is read, as a network would deliver it, and thrown away.
                let _ = bodies::whole(answer.into_body()).await;
                body = Body::from(bytes);
            }
            Fault::None | Fault::LoseAnswer(_) | Fault::HangUp | Fault::CutAnswer => {}
        }
        let answer = self.act(&path, &method, Request::from_parts(head, body)).await;
        match fault {
            Fault::LoseAnswer(status) => Ok(plain(status)),
            Fault::HangUp => Err(hung_up()),
            Fault::CutAnswer => {
                let (head, body) = answer?.into_parts();
                match bodies::whole(body).await {
                    Some(bytes) if !bytes.is_empty() => {
                        Ok(HttpResponse::from_parts(head, Body::http_body(bodies::Broken::half(&bytes))))
                    }
                    _ => Err(hung_up()),
                }
            }
            _ => answer,
        }
    }

    /// Does the work; what changes a key has it to itself meanwhile.
    async fn act(
        &self,
        path: &str,
        method: &Method,
        mut request: Request<Body>,
    ) -> Result<HttpResponse, HttpError> {
        if *method == Method::POST && self.state.blind_completions.load(std::sync::atomic::Ordering::SeqCst) {
            request.headers_mut().remove("if-none-match");
        }
        let careless = self.state.careless.load(std::sync::atomic::Ordering::SeqCst);
        if careless || ![Method::PUT, Method::DELETE, Method::POST].contains(method) {
            return self.inner.call(request).await;
        }
        let lock = self
            .state
            .locks
            .lock()
            .expect("no holder of this lock panics")
            .entry(path.to_owned())
            .or_default()
            .clone();
        let held = lock.lock().await;
        let answer = self.inner.call(request).await;
        drop(held);
        let mut locks = self.state.locks.lock().expect("no holder of this lock panics");
        // Two holders: the map and this call. Nobody waits for it any more.
        if Arc::strong_count(&lock) == 2 {
            locks.remove(path);
        }
        answer
    }

    /// What credentials that may only add must not do.
    fn refuses(&self, request: &Request<Incoming>) -> bool {
        let creates = request.headers().get("if-none-match").is_some_and(|v| v == "*");
        let upload = request.uri().query().is_some_and(|query| query.contains("uploadId="));
        let changes = match *request.method() {
            // A part is no object yet; ending an upload deletes none.
            Method::PUT => !creates && !upload,
            Method::DELETE => !upload,
            Method::POST => upload && !creates,
            _ => false,
        };
        changes && self.only_adds(request)
    }

    /// Reads the access key out of the signature's credential scope.
    fn only_adds(&self, request: &Request<Incoming>) -> bool {
        let header = request.headers().get("authorization").and_then(|v| v.to_str().ok()).unwrap_or("");
        let key = header.split("Credential=").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or("");
        self.state.may_only_add.iter().any(|k| k == key)
    }
}

fn hung_up() -> HttpError {
    HttpError::new(Box::new(std::io::Error::other("hung up on purpose")))
}

fn plain(status: u16) -> HttpResponse {
    let mut answer = HttpResponse::new(Body::empty());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
}
