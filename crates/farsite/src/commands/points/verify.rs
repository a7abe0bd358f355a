//! `farsite points verify`: every byte that a point needs is opened and hashed again, the segments of its log
//! included. What is damaged is named; the newest point that does not need it is offered.

use std::sync::atomic::Ordering;

use farsite_model::PointId;
use farsite_model::config::Config;
use farsite_model::quantity::ByteSize;
use farsite_replicate::{connect, restore};
use farsite_store::ledger::{CommittedPoint, Ledger, Statement};
use farsite_store::manifest::Manifest;
use farsite_store::read::{ReadStats, Reader};
use farsite_store::{Damage, StoreError, logs};
use serde::Serialize;

use super::Named;
use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, FAILED, Failure};
use crate::output::Tone;
use crate::progress::Progress;
use crate::stores;

/// What verification found about one point.
#[derive(Debug, Serialize)]
struct Verified {
    point: PointId,
    ok: bool,
    items: usize,
    opened_bytes: u64,
    damage: Vec<ItemDamage>,
}

#[derive(Debug, Serialize)]
struct ItemDamage {
    /// The item that needs the object; the point itself for its manifest.
    item: String,
    #[serde(flatten)]
    damage: Damage,
}

pub async fn run(named: &Named, all: bool, record: bool, config: &Config, context: &Context) -> Ended {
    let (site, store) = stores::open(config, named.at.store.as_ref()).await?;
    let reader = connect::reader(config, &site, &store).await?;
    let mut ledger;
    let points: Vec<PointId>;
    if all {
        let group = stores::group(&store, named.words.first().map(String::as_str)).await?;
        ledger = Ledger::open(&store, &group).await?;
        points = ledger.state().points.iter().rev().filter(|p| !p.expired).map(CommittedPoint::id).collect();
    } else {
        let found = named.find(&store).await?;
        points = vec![found.point];
        ledger = found.ledger;
    }
    for damage in &ledger.state().damage {
        context.out.warn(&format!("damaged at the store: {damage}"));
    }
    let live: Vec<PointId> = points
        .iter()
        .filter(|id| ledger.state().point(**id).is_some_and(|point| !point.expired))
        .copied()
        .collect();
    context.pins.hold(config, &store, ledger.group(), &live).await;
    let progress = Progress::new();
    let mut verified = Vec::new();
    for point in points {
        progress.says(format!("verifying point {}", point.short()));
        let Some(committed) = ledger.state().point(point).cloned() else { continue };
        verified.push(one(&reader, &ledger, &committed).await?);
    }
    progress.clear();
    if record {
        note(&mut ledger, &verified, config).await?;
    }
    let damaged = verified.iter().any(|point| !point.ok) || !ledger.state().damage.is_empty();
    let offer = if damaged { undamaged(&reader, &ledger, &verified).await? } else { None };
    if context.out.json {
        context.out.json(&serde_json::json!({
            "group": ledger.group(),
            "ledger_damage": ledger.state().damage,
            "points": verified,
            "newest_undamaged": offer,
        }));
    } else {
        show(&verified, damaged, offer, record, context);
    }
    Ok(if damaged { FAILED } else { DONE })
}

async fn one(reader: &Reader, ledger: &Ledger, point: &CommittedPoint) -> Result<Verified, Failure> {
    let stats = ReadStats::default();
    let mut damage = Vec::new();
    let mut items = 0;
    match Manifest::read(&reader.store, ledger.group(), point.id(), &point.said.manifest).await {
        Err(StoreError::Damaged(found)) => add(&mut damage, "the point itself", found),
        Err(error) => return Err(error.into()),
        Ok(manifest) => {
            items = manifest.items.len();
            for item in &manifest.items {
                match restore::verify(reader, item, &stats).await {
                    Ok(found) => add(&mut damage, item.id.as_str(), found),
                    Err(farsite_replicate::ReplicateError::Store(StoreError::Damaged(found))) => {
                        add(&mut damage, item.id.as_str(), found);
                    }
                    Err(error) => return Err(error.into()),
                }
                if let Some(log) = &item.log {
                    for segment in
                        logs::list_of_site(&reader.store, ledger.group(), &log.timeline, None, &manifest.site)
                            .await?
                    {
                        match logs::read(&reader.store, &reader.opener, &segment).await {
                            Ok(_) => {}
                            Err(StoreError::Damaged(found)) => add(&mut damage, item.id.as_str(), found),
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
            }
        }
    }
    Ok(Verified {
        point: point.id(),
        ok: damage.is_empty(),
        items,
        opened_bytes: stats.written_bytes.load(Ordering::Relaxed),
        damage,
    })
}

fn add(damage: &mut Vec<ItemDamage>, item: &str, found: Vec<Damage>) {
    damage.extend(found.into_iter().map(|damage| ItemDamage { item: item.to_owned(), damage }));
}

/// Writes down which points are damaged, so that no failover takes one by itself.
async fn note(ledger: &mut Ledger, verified: &[Verified], config: &Config) -> Result<(), Failure> {
    let signer = connect::standby_agent(config).or_else(|_| connect::operator(config))?;
    for point in verified.iter().filter(|point| !point.ok) {
        let mut objects: Vec<String> = point.damage.iter().map(|found| found.damage.object.clone()).collect();
        objects.sort();
        objects.dedup();
        let id = point.point;
        // What a repair has noted tells more.
        let noted = ledger.state().point(id).map_or(&[][..], |known| &known.damaged);
        if objects.iter().all(|object| noted.contains(object)) {
            continue;
        }
        let says =
            |_: &_| Ok(Statement::PointDamaged { point: id, objects: objects.clone(), packs: Vec::new() });
        ledger.append(&signer, says).await?;
    }
    Ok(())
}

/// The newest point that a failover could take and whose every byte opens.
async fn undamaged(
    reader: &Reader,
    ledger: &Ledger,
    verified: &[Verified],
) -> Result<Option<PointId>, Failure> {
    for point in ledger.state().points.iter().rev().filter(|p| p.flaws().is_empty()) {
        let known = verified.iter().find(|one| one.point == point.id());
        let ok = match known {
            Some(known) => known.ok,
            None => one(reader, ledger, point).await?.ok,
        };
        if ok {
            return Ok(Some(point.id()));
        }
    }
    Ok(None)
}

fn show(verified: &[Verified], damaged: bool, offer: Option<PointId>, recorded: bool, context: &Context) {
    let out = context.out;
    for point in verified {
        if point.ok {
            out.line(format!(
                "{} point {}: {} items, {} opened and hashed",
                out.paint(Tone::Good, "✓"),
                point.point.short(),
                point.items,
                ByteSize(point.opened_bytes)
            ));
            continue;
        }
        out.line(format!("{} point {} is damaged:", out.paint(Tone::Bad, "✗"), point.point.short()));
        for found in &point.damage {
            out.line(format!("    {}: {}", found.item, found.damage));
        }
    }
    if !recorded && verified.iter().any(|point| !point.ok) {
        out.line("Nothing was noted in the ledger; `--record` does that, and no failover takes a noted point by itself.");
    }
    if damaged {
        match offer {
            Some(id) => out.line(format!(
                "The newest undamaged whole point is {}: `farsite failover --point {}` takes it.",
                id.short(),
                id.short()
            )),
            None => out.line("No whole point is undamaged. A full run at the source sends everything anew: `farsite replicate --full`."),
        }
    }
}
