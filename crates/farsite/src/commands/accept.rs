//! `farsite accept [PROMOTION]`: what a promotion did stays; it can no longer be rolled back.

use farsite_promote::accept;

use crate::commands::Ended;
use crate::context::{Context, who};
use crate::failure::DONE;
use crate::output::Tone;
use crate::promotions::{self, Which};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The start of its id; the open or newest one where none is given.
    pub promotion: Option<String>,
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    pub store: Option<farsite_model::SiteName>,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let standby = promotions::standby(&config, args.store.as_ref()).await?;
    let id = promotions::one(&standby, Which::Promotions, args.promotion.as_deref()).await?;
    let signer = promotions::operator(&config)?;
    context.confirm(&format!("Accept promotion {}? It cannot be rolled back any more.", id.short()))?;
    accept::accept(&standby, &signer, id, &who()).await?;
    if context.out.json {
        context.out.json(&serde_json::json!({ "promotion": id, "accepted": true }));
    } else {
        context.out.line(format!("{} promotion {id} is accepted", context.out.paint(Tone::Good, "✓")));
    }
    Ok(DONE)
}
