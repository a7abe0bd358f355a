//! An S3 server in this process, on loopback, for the demo and the tests. A folder and credentials come in; an
//! endpoint goes out. The storage is s3s-fs, which looks first and writes afterwards: the front in this crate holds a
//! lock per key around every write, so that `If-None-Match: *` is atomic, refuses what some credentials may not do, and
//! injects faults.
//!
//! Not a server for production: one folder, no redundancy.

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
    /// DELETE and writes without `If-None-Match: *` answer 403: what a bucket policy does for agents.
    pub may_only_add: bool,
}

/// A request as a fault rule sees it.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: String,
    /// `/bucket/key`
    pub path: String,
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

    /// Takes the lock per key away: what is left is s3s-fs as it is, which looks first and writes afterwards. For tests of
    /// the race that must find this out.
    pub fn write_carelessly(&self) {
        self.front.state.careless.store(true, std::sync::atomic::Ordering::SeqCst);
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
            faults(&Call { method: method.to_string(), path: path.clone(), number })
        };
        match fault {
            Fault::Refuse(status) => return Ok(plain(status)),
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::None | Fault::LoseAnswer(_) | Fault::HangUp => {}
        }
        let creates = request.headers().get("if-none-match").is_some_and(|v| v == "*");
        if (method == Method::DELETE || (method == Method::PUT && !creates)) && self.only_adds(&request) {
            return Ok(plain(403));
        }
        let careless = self.state.careless.load(std::sync::atomic::Ordering::SeqCst);
        let answer = if careless {
            self.inner.call(request.map(Body::from)).await
        } else if method == Method::PUT || method == Method::DELETE || method == Method::POST {
            let lock = self
                .state
                .locks
                .lock()
                .expect("no holder of this lock panics")
                .entry(path.clone())
                .or_default()
                .clone();
            let held = lock.lock().await;
            let answer = self.inner.call(request.map(Body::from)).await;
            drop(held);
            let mut locks = self.state.locks.lock().expect("no holder of this lock panics");
            // Two holders: the map and this call. Nobody waits for it any more.
            if Arc::strong_count(&lock) == 2 {
                locks.remove(&path);
            }
            answer
        } else {
            self.inner.call(request.map(Body::from)).await
        };
        match fault {
            Fault::LoseAnswer(status) => Ok(plain(status)),
            Fault::HangUp => Err(HttpError::new(Box::new(std::io::Error::other("hung up on purpose")))),
            _ => answer,
        }
    }

    /// Reads the access key out of the signature's credential scope.
    fn only_adds(&self, request: &Request<Incoming>) -> bool {
        let header = request.headers().get("authorization").and_then(|v| v.to_str().ok()).unwrap_or("");
        let key = header.split("Credential=").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or("");
        self.state.may_only_add.iter().any(|k| k == key)
    }
}

fn plain(status: u16) -> HttpResponse {
    let mut answer = HttpResponse::new(Body::empty());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
}
