//! Listens, and serves each client in a task of its own. An address comes in; the URI that clients are given goes out.
//! What must hold: only this machine's users reach it (a loopback address, or a socket of mode 0600); ending it ends every
//! connection and removes the socket.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::transmission::{self, Client};
use crate::{Export, Limits, handshake};

/// A client that does not get on with its handshake is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where clients find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    /// A path at which nothing stands.
    Socket(PathBuf),
}

enum Listener {
    Tcp(TcpListener),
    Socket(UnixListener, PathBuf),
}

/// Bound, not yet serving.
pub struct Server {
    listener: Listener,
    limits: Limits,
}

impl Server {
    /// A socket is made with mode 0600. A TCP address that others reach is the caller's to refuse.
    pub async fn bind(address: &Address, limits: Limits) -> io::Result<Self> {
        let listener = match address {
            Address::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await?),
            Address::Socket(path) => {
                let listener = UnixListener::bind(path)?;
                let listener = Listener::Socket(listener, path.clone());
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                listener
            }
        };
        Ok(Self { listener, limits })
    }

    /// What `qemu-img`, `nbdinfo` and `nbdcopy` take as the address.
    pub fn uri(&self) -> io::Result<String> {
        Ok(match &self.listener {
            Listener::Tcp(listener) => format!("nbd://{}", listener.local_addr()?),
            Listener::Socket(_, path) => format!("nbd+unix:///?socket={}", escaped(&path.to_string_lossy())),
        })
    }

    /// Serves until it is cancelled.
    pub async fn run(self, export: Arc<dyn Export>, cancel: CancellationToken) -> io::Result<()> {
        let room = Arc::new(Semaphore::new(self.limits.reply_bytes));
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            let one = One { export: export.clone(), room: room.clone(), room_bytes: self.limits.reply_bytes };
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = self.accept() => accepted,
            };
            match accepted {
                _ if clients.len() >= self.limits.clients => {
                    tracing::warn!("more than {} NBD clients at once: one was turned away", clients.len());
                }
                Ok(Stream::Tcp(stream)) => {
                    let _ = stream.set_nodelay(true);
                    let (reader, writer) = stream.into_split();
                    clients.spawn(one.serve(reader, writer));
                }
                Ok(Stream::Socket(stream)) => {
                    let (reader, writer) = stream.into_split();
                    clients.spawn(one.serve(reader, writer));
                }
                Err(error) => {
                    // Too many open files, say: the clients that are here go on.
                    tracing::warn!("an NBD client could not be taken: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        clients.shutdown().await;
        Ok(())
    }

    async fn accept(&self) -> io::Result<Stream> {
        match &self.listener {
            Listener::Tcp(listener) => Ok(Stream::Tcp(listener.accept().await?.0)),
            Listener::Socket(listener, _) => Ok(Stream::Socket(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Socket(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Socket(tokio::net::UnixStream),
}

/// One connection.
struct One {
    export: Arc<dyn Export>,
    room: Arc<Semaphore>,
    room_bytes: usize,
}

impl One {
    async fn serve(
        self,
        reader: impl AsyncRead + Unpin + Send,
        writer: impl AsyncWrite + Unpin + Send + 'static,
    ) {
        let mut stream = tokio::io::join(reader, writer);
        let agreed = match tokio::time::timeout(HANDSHAKE, handshake::shake(&mut stream, &*self.export)).await
        {
            Ok(Ok(Some(agreed))) => agreed,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::debug!("an NBD client was let go in its handshake: {error}");
                return;
            }
            Err(_) => {
                tracing::debug!("an NBD client did not finish its handshake in time");
                return;
            }
        };
        let (reader, writer) = stream.into_inner();
        let client = Client {
            export: self.export,
            agreed,
            room: self.room,
            room_bytes: self.room_bytes,
            writer: Mutex::new(writer),
        };
        if let Err(error) = transmission::serve(reader, client).await {
            tracing::debug!("an NBD client was let go: {error}");
        }
    }
}

/// A path as a part of a URI (RFC 3986).
fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
