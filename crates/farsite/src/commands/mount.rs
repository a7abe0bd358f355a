//! `farsite mount POINT ITEM`: one item of a point as a read-only NBD export, read where it lies. It serves until it is
//! interrupted; what is read is authenticated as in a restore, and what is damaged is an error and named in the log.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use farsite_model::quantity::ByteSize;
use farsite_nbd::{Address, Export, Extent, Limits, Server};
use farsite_replicate::connect;
use farsite_store::StoreError;
use farsite_store::manifest::Manifest;
use farsite_store::read::LazyItem;

use super::points::Named;
use super::restore;
use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};
use crate::stores;

/// The port that is registered for NBD.
const ADDRESS: &str = "127.0.0.1:10809";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The start of a point's id, `latest`, `latest-proven` or a time.
    pub point: String,
    /// An item of it as `farsite points show` names it: `cinder/volume-1`, or the name alone.
    pub item: String,
    /// Where to listen: an address of this machine alone, since NBD neither asks who reads nor hides what is read. Port 0
    /// takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = ADDRESS, conflicts_with = "socket")]
    pub listen: SocketAddr,
    /// Listen at a Unix socket instead, which only this user can open.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Keep this much of what was read.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub cache: ByteSize,
    /// The group, where the point's name is not plain without it.
    #[arg(long)]
    pub group: Option<String>,
    #[command(flatten)]
    pub store: super::points::At,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let address = address(&args)?;
    let (site, store) = stores::open(&config, args.store.store.as_ref()).await?;
    let named = Named {
        words: args.group.iter().chain(std::iter::once(&args.point)).cloned().collect(),
        at: super::points::At { store: args.store.store.clone() },
    };
    let found = named.find(&store).await?;
    let point = found.committed()?;
    let manifest = Manifest::read(&store, found.ledger.group(), point.id(), &point.said.manifest).await?;
    let item = restore::item(&manifest, &args.item)?;
    if item.directory.is_some() {
        return Err(Failure::usage(format!("{} is a folder of files, not one disk", item.id))
            .hint("`farsite restore` writes it into a folder"));
    }
    let reader = connect::reader(&config, &site, &store).await?;
    context.pins.hold(&config, &store, found.ledger.group(), &[point.id()]).await;
    for flaw in point.flaws() {
        context.out.warn(&format!("point {} is {flaw}", point.id().short()));
    }
    let lazy = LazyItem::new(reader, item.data.clone(), args.cache.0)?;
    let export: Arc<dyn Export> = Arc::new(Mounted { name: item.id.to_string(), lazy });
    let server = Server::bind(&address, Limits::default()).await.map_err(|error| cannot(&address, &error))?;
    let uri = server.uri().map_err(Failure::io("asking for the address"))?;
    if context.out.json {
        // One line, so that a script need not wait for the end.
        let line = serde_json::json!({
            "uri": uri,
            "point": point.id(),
            "item": item.id,
            "size_bytes": item.data.size_bytes,
            "block_bytes": item.data.block_bytes,
            "pid": std::process::id(),
        });
        context.out.line(line.to_string());
    } else {
        context.out.line(format!(
            "{} of point {} ({}) is at {uri}, read-only\n`qemu-img info '{uri}'`, `nbdcopy '{uri}' FILE` or `qemu-nbd` read it; Ctrl-C ends it",
            item.id,
            point.id().short(),
            ByteSize(item.data.size_bytes),
        ));
    }
    server.run(export, context.cancel.clone()).await.map_err(Failure::io("serving"))?;
    // To be stopped is how it ends.
    Ok(DONE)
}

fn address(args: &Args) -> Result<Address, Failure> {
    if let Some(path) = &args.socket {
        return Ok(Address::Socket(path.clone()));
    }
    if args.listen.ip().is_loopback() {
        return Ok(Address::Tcp(args.listen));
    }
    Err(Failure::refused(format!(
        "{} is reached from other machines, and NBD asks nobody who he is",
        args.listen
    ))
    .hint(
        "listen at 127.0.0.1 or at a --socket, and let others in through ssh (ssh -L 10809:127.0.0.1:10809)",
    ))
}

fn cannot(address: &Address, error: &std::io::Error) -> Failure {
    match address {
        Address::Tcp(address) => Failure::failed(format!("listening at {address}: {error}"))
            .hint("another mount may be there: give --listen 127.0.0.1:0 for a free port"),
        Address::Socket(path) => Failure::failed(format!("listening at {}: {error}", path.display()))
            .hint("a socket that stands there already is not taken over: remove it if nobody serves it, or give another path"),
    }
}

/// An item as NBD clients see it.
struct Mounted {
    name: String,
    lazy: LazyItem,
}

impl Mounted {
    /// The log names the object; the client hears the same.
    fn told(&self, range: &Range<u64>, error: &StoreError) -> String {
        tracing::error!(item = %self.name, "bytes {} to {} cannot be read: {error}", range.start, range.end);
        error.to_string()
    }
}

#[async_trait]
impl Export for Mounted {
    fn name(&self) -> &str {
        &self.name
    }
    fn size_bytes(&self) -> u64 {
        self.lazy.size_bytes()
    }
    fn preferred_bytes(&self) -> u32 {
        self.lazy.block_bytes()
    }
    async fn read(&self, range: Range<u64>) -> Result<Bytes, String> {
        self.lazy.read(range.clone()).await.map_err(|error| self.told(&range, &error))
    }
    async fn extent(&self, range: Range<u64>) -> Result<Extent, String> {
        match self.lazy.extent(range.clone()).await {
            Ok((end, is_hole)) => Ok(Extent { end, is_hole }),
            Err(error) => Err(self.told(&range, &error)),
        }
    }
}
