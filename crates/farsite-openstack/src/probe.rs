//! Whether a cloud's Keystone can be reached at all, before anything depends on it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Cloud;

/// A Keystone that accepted a connection. Whether it also lets us in, this does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    pub address: SocketAddr,
    /// From the start of the name's resolution to the open connection.
    pub took: Duration,
}

/// Why a Keystone cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "the host {host:?} of cloud {cloud:?} has no address: {source}. Hint: `getent hosts {host}` on this host; \
         a name server may have been lost with the site"
    )]
    Resolve { cloud: String, host: String, source: std::io::Error },
    #[error(
        "Keystone of cloud {cloud:?} cannot be reached at {host}, port {port}: {source}. Hint: the site may be \
         down, or a firewall stands between"
    )]
    Connect { cloud: String, host: String, port: u16, source: std::io::Error },
    #[error(
        "Keystone of cloud {cloud:?} did not answer at {host}, port {port} within {} ms. Hint: the site may be \
         down, or a firewall drops what it gets",
        limit.as_millis()
    )]
    TimedOut { cloud: String, host: String, port: u16, limit: Duration },
}

/// Opens a TCP connection to the `auth_url`'s host and port, and closes it; sends nothing. All addresses of the
/// host are tried at once: one that answers is enough. Never takes longer than `limit`; dropping the future
/// ends it.
pub async fn probe(cloud: &Cloud, limit: Duration) -> Result<Reached, ProbeError> {
    tokio::time::timeout(limit, connect(cloud)).await.unwrap_or_else(|_| {
        Err(ProbeError::TimedOut {
            cloud: cloud.name.clone(),
            host: cloud.auth_url.host().to_owned(),
            port: cloud.auth_url.port(),
            limit,
        })
    })
}

async fn connect(cloud: &Cloud) -> Result<Reached, ProbeError> {
    let started = Instant::now();
    let (host, port) = (cloud.auth_url.host(), cloud.auth_url.port());
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(|source| ProbeError::Resolve {
        cloud: cloud.name.clone(),
        host: host.to_owned(),
        source,
    })?;
    // One after the other, a first address that drops everything would use up the whole limit.
    let mut attempts: JoinSet<std::io::Result<SocketAddr>> =
        addresses.map(|address| async move { TcpStream::connect(address).await.map(|_| address) }).collect();
    let mut failure = std::io::Error::new(std::io::ErrorKind::NotFound, "its name has no address");
    while let Some(ended) = attempts.join_next().await {
        match ended.map_err(std::io::Error::from).flatten() {
            Ok(address) => return Ok(Reached { address, took: started.elapsed() }),
            Err(error) => failure = error,
        }
    }
    Err(ProbeError::Connect { cloud: cloud.name.clone(), host: host.to_owned(), port, source: failure })
}
