//! `farsite serve-sources`: what is local to this host, read for the agent on another one that coordinates the group. It speaks
//! over standard input and output and ends with them.

use std::sync::Arc;

use farsite_openstack::SiteCloud;
use farsite_replicate::capture::host_name;
use farsite_sources::remote::{ServeOptions, serve};

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let options = ServeOptions {
        host: host_name(),
        site: config.site.clone(),
        cloud: Arc::new(SiteCloud::of(&config, &config.site)),
        state: config.state_dir(),
    };
    let (input, output) = (std::io::stdin(), std::io::stdout());
    serve(options, input, output, context.cancel.cancelled())
        .await
        .map_err(|error| Failure::failed(error.to_string()))?;
    Ok(DONE)
}
