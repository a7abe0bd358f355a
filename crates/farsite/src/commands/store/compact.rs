//! `farsite store compact`: packs of which only a small part is live are emptied into new ones, so that collection can
//! remove them. Runs at the standby, with a standby agent's or an operator's key and the identity that opens what is stored.

use farsite_model::SiteName;
use farsite_model::quantity::ByteSize;
use farsite_replicate::connect;
use farsite_store::keep::{CompactOptions, Compacted, MarkOptions, compact};

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, UNSAFE};
use crate::output::Tone;
use crate::progress::Progress;
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// This group only.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    store: Option<SiteName>,
    /// Show what would be read, written and freed; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Empty packs of which at most this part is live.
    #[arg(long, value_name = "PERCENT", default_value = "50%", value_parser = percent)]
    max_live: u8,
    /// The most memory for telling what is live; with less it takes longer.
    #[arg(long, value_name = "SIZE", default_value = "96MiB")]
    memory: ByteSize,
}

fn percent(text: &str) -> Result<u8, String> {
    let number: u8 = text
        .trim_end_matches('%')
        .parse()
        .map_err(|_| format!("{text:?} is no percentage; write for example 50%"))?;
    if (1..=99).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number}% is not between 1% and 99%: a pack that is all live would be written again"))
    }
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let (site, store) = stores::open(&config, args.store.as_ref()).await?;
    let names = stores::groups(&store, args.group.as_deref()).await?;
    let reader = connect::reader(&config, &site, &store).await?;
    let signer = connect::standby_agent(&config).or_else(|_| connect::operator(&config))?;
    let ledgers = stores::ledgers(&store, &names).await?;
    let options = CompactOptions {
        dry_run: args.dry_run,
        max_live_percent: args.max_live,
        mark: MarkOptions::within(args.memory.0 as usize),
        ..CompactOptions::default()
    };
    let progress = Progress::new();
    let done = compact(&reader, ledgers, &signer, &config.site, &options, &progress).await?;
    progress.clear();
    if context.out.json {
        context.out.json(&done);
    } else {
        show(&done, context);
    }
    let stopped = done.groups.values().any(|group| group.refused.is_some() || !group.damage.is_empty());
    Ok(if stopped { UNSAFE } else { DONE })
}

fn show(done: &Compacted, context: &Context) {
    let out = context.out;
    for (name, group) in &done.groups {
        let good = out.paint(Tone::Good, "✓");
        let (live, emptied) = (group.live_packs, group.emptied);
        let share = format!("of {} live packs ({})", live.objects, ByteSize(live.bytes));
        if done.dry_run {
            out.line(format!(
                "{good} {name}: {} packs ({}) {share} are at most {}% live and would be emptied: about {} read and written, about {} freed by the next collection",
                emptied.objects,
                ByteSize(emptied.bytes),
                done.max_live_percent,
                ByteSize(group.moved_bytes),
                ByteSize(group.freed_bytes),
            ));
        } else {
            out.line(format!(
                "{good} {name}: {} packs ({}) {share} are emptied: {} read, {} written in {} packs; `farsite store gc` frees {}",
                emptied.objects,
                ByteSize(emptied.bytes),
                ByteSize(group.moved_bytes),
                ByteSize(group.written.bytes),
                group.written.objects,
                ByteSize(group.freed_bytes),
            ));
        }
        for damage in group.damage.iter().take(10) {
            out.warn(&format!("damaged, and left as it is: {damage}"));
        }
        if !group.damage.is_empty() {
            out.line("  `farsite store check --depth full` says whom it touches.");
        }
        if let Some(why) = &group.refused {
            out.error(why);
        }
    }
}
