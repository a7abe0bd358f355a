//! The replica store of the demo: an S3 server in this process, with one credential for north that can only add, and one
//! for south. `farsite demo-store` serves the same objects when a demo is kept.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use farsite_s3server::{Credentials, Server};
use farsite_store::backend::S3Access;
use farsite_store::hex::Hex;

use super::layout::Layout;
use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};

const BUCKET: &str = "replica";
/// Files that hold a site's credentials; its farsite.yaml names them.
pub const ACCESS_KEY: &str = "s3-access-key";
pub const SECRET_KEY: &str = "s3-secret-key";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The demo's folder.
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    port: u16,
}

/// `farsite demo-store`: until it is told to end.
pub async fn run(args: Args, context: &Context) -> Ended {
    let layout = Layout::new(&args.root);
    let server = serve(&layout, args.port, vec![load(&layout.south())?]).await?;
    context.cancel.cancelled().await;
    drop(server);
    Ok(DONE)
}

/// Draws credentials and writes them where the site's configuration finds them.
pub fn draw(folder: &Path, may_only_add: bool) -> Result<Credentials, Failure> {
    let one = Credentials {
        access_key: Hex::<10>::random().to_string(),
        secret_key: Hex::<20>::random().to_string(),
        may_only_add,
    };
    std::fs::create_dir_all(folder).map_err(Failure::io(format!("creating {}", folder.display())))?;
    for (name, text) in [(ACCESS_KEY, &one.access_key), (SECRET_KEY, &one.secret_key)] {
        let path = folder.join(name);
        let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(Failure::io(format!("writing {}", path.display())))?;
    }
    Ok(one)
}

fn load(folder: &Path) -> Result<Credentials, Failure> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).map_err(Failure::io(format!("reading {}", path.display())))
    };
    Ok(Credentials { access_key: read(ACCESS_KEY)?, secret_key: read(SECRET_KEY)?, may_only_add: false })
}

/// Serves the demo's objects.
pub async fn serve(layout: &Layout, port: u16, credentials: Vec<Credentials>) -> Result<Server, Failure> {
    let folder = layout.replica();
    Server::create_bucket(&folder, BUCKET).map_err(Failure::io(format!("creating {}", folder.display())))?;
    Server::start(&folder, port, credentials).await.map_err(Failure::io("starting the S3 server"))
}

/// The store's address, as it stands in both configurations.
pub fn url(endpoint: &str) -> String {
    format!("s3://{BUCKET}/north?endpoint={endpoint}&region=south")
}

pub fn access(credentials: &Credentials) -> S3Access {
    S3Access {
        access_key: credentials.access_key.clone(),
        secret_key: credentials.secret_key.clone(),
        ..S3Access::default()
    }
}
