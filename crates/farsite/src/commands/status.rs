//! `farsite status`: every group as the replica stores see it. Figures err to the worse side; a missed RPO is exit
//! code 3.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::quantity::ByteSize;
use farsite_model::status::{GroupStatus, Phase};
use farsite_replicate::status::StatusReader;
use farsite_web::StatusDocument;
use jiff::Timestamp;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure, TARGET_MISSED};
use crate::output::{Tone, seconds};
use crate::stores;

/// A store that does not answer must not keep the others from being shown.
const READ_LIMIT: Duration = Duration::from_mins(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// This group only.
    pub group: Option<String>,
    /// Draw it again every second.
    #[arg(long)]
    pub watch: bool,
    /// The store at this site only.
    #[arg(long, value_name = "SITE")]
    pub store: Option<SiteName>,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let policies = stores::policies(&config)?;
    let sites: Vec<SiteName> = match &args.store {
        Some(site) => vec![stores::store_site(&config, Some(site))?],
        None if config.stores.is_empty() => vec![stores::store_site(&config, None)?],
        None => config.stores.keys().cloned().collect(),
    };
    let mut readers = Vec::new();
    for site in &sites {
        readers.push(StatusReader::open(&config, site).await?);
    }
    loop {
        let mut groups = Vec::new();
        for reader in &mut readers {
            let read = tokio::time::timeout(READ_LIMIT, reader.read(&policies)).await;
            groups.extend(read.map_err(|_| {
                Failure::failed(format!("a store did not answer within {}s", READ_LIMIT.as_secs()))
                    .hint("`farsite check` says which one")
            })??);
        }
        if let Some(name) = &args.group {
            let known: Vec<_> = groups.iter().map(|status| status.group.clone()).collect();
            groups.retain(|status| status.group.as_str() == name);
            if groups.is_empty() {
                return Err(stores::no_group(name, &known));
            }
        }
        let missed = groups.iter().any(|status| status.rpo_ratio.is_some_and(|ratio| ratio > 1.0));
        if args.watch && !context.out.json && std::io::stdout().is_terminal() {
            let _ = write!(std::io::stdout(), "\u{1b}[H\u{1b}[2J");
        }
        if context.out.json {
            context.out.json(&StatusDocument { generated: Timestamp::now(), groups });
        } else {
            show(&groups, context);
        }
        if !args.watch {
            return Ok(if missed { TARGET_MISSED } else { DONE });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn show(groups: &[GroupStatus], context: &Context) {
    let out = context.out;
    if groups.is_empty() {
        out.line("No group has a recovery point yet, and no policy is here.");
        return;
    }
    for (n, status) in groups.iter().enumerate() {
        if n > 0 {
            out.line("");
        }
        let to: Vec<&str> = status.to.iter().map(SiteName::as_str).collect();
        out.line(format!(
            "{}  {} → {}  {}",
            out.paint(Tone::Strong, status.group.as_str()),
            status.site,
            to.join(", "),
            phase(status, context)
        ));
        out.table(&[], &rows(status));
        for warning in &status.warnings {
            out.line(format!("{} {warning}", out.paint(Tone::Warn, "!")));
        }
    }
}

fn phase(status: &GroupStatus, context: &Context) -> String {
    let (tone, word) = match status.phase {
        Phase::InitialSync => (Tone::Warn, "initial sync"),
        Phase::Replicating => (Tone::Good, "replicating"),
        Phase::Promoting => (Tone::Warn, "promoting"),
        Phase::Promoted => (Tone::Warn, "promoted"),
        Phase::SplitBrainSuspected => (Tone::Bad, "split-brain suspected"),
        Phase::Damaged => (Tone::Bad, "damaged"),
    };
    let word = context.out.paint(tone, word);
    if status.phase == Phase::Replicating { word } else { format!("{word}: {}", status.progression) }
}

fn rows(status: &GroupStatus) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![format!("  {name}"), value]);
    let exposure = match (status.exposure_s, status.rpo_target_s) {
        (None, _) if matches!(status.phase, Phase::Promoting | Phase::Promoted) => {
            format!("{} is primary, and no other site has a point of it yet", status.primary)
        }
        (None, _) if status.epoch.0 > 1 => {
            format!("{} is primary since its promotion and is not replicated anywhere yet", status.primary)
        }
        (None, _) => "no point that a failover would take: everything would be lost".to_owned(),
        (Some(s), None) => format!("{} (no target is known here)", seconds(s)),
        (Some(s), Some(target)) => {
            let verdict = if s > target { "MISSED" } else { "met" };
            format!("{} of {} allowed ({verdict})", seconds(s), seconds(target))
        }
    };
    row("exposure", exposure);
    if status.exposure_by_kind_s.len() > 1 {
        let kinds: Vec<String> =
            status.exposure_by_kind_s.iter().map(|(kind, s)| format!("{kind} {}", seconds(*s))).collect();
        row("by kind", kinds.join(", "));
    }
    if let Some(lag) = status.log_lag_s {
        row("log", format!("{} behind with --point latest-log", seconds(lag)));
    }
    if let Some(point) = &status.newest_point {
        row(
            "newest point",
            format!(
                "{}  captured {}  {} items, {}{}",
                point.id.short(),
                format_args!("{:.0}", point.captured.0),
                point.items,
                point.weakest,
                if point.whole { "" } else { ", PARTIAL" }
            ),
        );
        row(
            "last run",
            format!("{} changed, {} shipped", ByteSize(point.changed_bytes), ByteSize(point.shipped_bytes)),
        );
    }
    if let Some(kept) = &status.kept {
        let let_go = match kept.let_go {
            0 => String::new(),
            count => format!(", {count} let go"),
        };
        row(
            "kept at source",
            format!(
                "{} in {} versions{let_go}, at {:.0}",
                ByteSize(kept.bytes),
                kept.versions,
                kept.measured
            ),
        );
    }
    row(
        "proven point",
        status
            .newest_proven
            .map_or_else(|| "none: `farsite drill run` proves one".to_owned(), |id| id.short()),
    );
    row(
        "points",
        format!(
            "{} ({} partial, {} suspicious)",
            status.points, status.partial_points, status.suspicious_points
        ),
    );
    row("primary", format!("{} in epoch {}", status.primary, status.epoch));
    if let Some(ms) = status.clock_ahead_ms.filter(|ms| ms.abs() >= 1000) {
        row("clock", format!("{:.1}s ahead of the store's", ms as f64 / 1000.0));
    }
    rows
}
