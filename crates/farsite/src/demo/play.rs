//! The play: north is built and replicated, disaster strikes, south is promoted, and the promises are counted.

use std::path::PathBuf;
use std::process::Stdio;
use std::str::FromStr;
use std::time::{Duration, Instant};

use farsite_model::GroupName;
use farsite_model::config::Config;
use farsite_model::ids::InvalidId;
use farsite_model::policy::Policy;
use farsite_model::status::GroupStatus;
use farsite_replicate::status::StatusReader;
use farsite_s3server::Server;
use farsite_store::backend::race::probe_tampering;
use farsite_store::backend::{self, SharedBackend};
use farsite_store::hex::Hex;
use farsite_store::ledger::Ledger;

use super::acknowledged::now_ms;
use super::compare::compare;
use super::database::Kind;
use super::figures::{self, Figures};
use super::layout::{GROUP, Layout};
use super::north::North;
use super::seeded::Seeded;
use super::{StoreKind, configs, recovery, store};
use crate::context::Context;
use crate::failure::Failure;
use crate::founding::Founding;
use crate::output::{Tone, seconds};

/// How long the agent may take for the first recovery points.
const POINTS_LIMIT: Duration = Duration::from_secs(75);
const LOOK: Duration = Duration::from_millis(300);

/// What is played.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    pub kind: Kind,
    /// Why this database, for people.
    pub why: &'static str,
    pub store: StoreKind,
    pub seed: u64,
    pub points: usize,
}

/// A play that came to its end.
pub struct Played {
    pub figures: Figures,
    /// The newest point before the disaster, short.
    point: String,
    server: Option<Server>,
    port: Option<u16>,
}

/// Tells what happens, with the time since the beginning.
struct Story<'c> {
    context: &'c Context,
    begun: Instant,
}

impl Story<'_> {
    fn says(&self, words: impl AsRef<str>) {
        let out = self.context.out;
        let at = out.paint(Tone::Dim, &format!("{:5.1}s", self.begun.elapsed().as_secs_f64()));
        out.say(format!("{at}  {}", words.as_ref()));
    }
}

/// South's store, and who may do what there.
struct South {
    url: String,
    /// With the credentials of south.
    backend: SharedBackend,
    /// With those of north's agent.
    agents: SharedBackend,
    server: Option<Server>,
    port: Option<u16>,
}

async fn open_store(layout: &Layout, kind: StoreKind) -> Result<South, Failure> {
    if kind == StoreKind::Folder {
        let url = layout.replica().display().to_string();
        let backend = backend::open(&url, &backend::S3Access::default(), true)?;
        return Ok(South { url, agents: backend.clone(), backend, server: None, port: None });
    }
    let (south, north) = (store::draw(&layout.south(), false)?, store::draw(&layout.north(), true)?);
    let server = store::serve(layout, 0, vec![south.clone(), north.clone()]).await?;
    let url = store::url(&server.endpoint());
    let port = server.endpoint().rsplit(':').next().and_then(|port| port.parse().ok());
    let open = |credentials| backend::open(&url, &store::access(credentials), true);
    Ok(South { backend: open(&south)?, agents: open(&north)?, url, server: Some(server), port })
}

/// One of the demo's own names.
fn name<T: FromStr<Err = InvalidId>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error: InvalidId| Failure::failed(error.to_string()))
}

/// A port that was free a moment ago, for south's service.
fn free_address() -> Result<String, Failure> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.to_string()).map_err(Failure::io("looking for a free port"))
}

pub async fn play(layout: &Layout, order: &Order, context: &Context) -> Result<Played, Failure> {
    let story = Story { context, begun: Instant::now() };
    let this = std::env::current_exe().map_err(Failure::io("finding this program"))?;
    let Order { kind, seed, .. } = *order;

    story.says(format!("two sites in {}, seed {seed}", layout.root.display()));
    let mut north = North::build(&layout.root, kind).await.map_err(Failure::failed)?;
    north.furnish(&layout.promises(), seed).await.map_err(Failure::failed)?;
    story.says(format!(
        "north: {}{} under continuous writes, images, volumes, Keystone's keys",
        kind.words(),
        order.why
    ));

    let south = open_store(layout, order.store).await?;
    let founding = Founding {
        source: name("north")?,
        standby: name("south")?,
        out: layout.root.clone(),
        single_recipient: false,
        source_keys: None,
    };
    let service = free_address()?;
    founding
        .found(&south.backend, |founded| {
            configs::write_north(layout, kind, &south.url, founded)?;
            configs::write_south(layout, kind, &south.url, founded, &founding, &service)
        })
        .await?;
    let tamper = probe_tampering(&south.agents, &Hex::<8>::random().to_string()).await?;
    story.says(format!(
        "south: a replica store ({}); north's agent: {}",
        order.store.words(),
        tamper.in_words()
    ));

    north.let_users_in(&this, &layout.promises(), seed).map_err(Failure::failed)?;
    north.start_agent(&this).map_err(Failure::failed)?;
    let config = Config::load(&layout.south_config())?;
    let policies: Vec<Policy> = config.load_policies()?.into_iter().map(|(_, policy)| policy).collect();
    if let Some(policy) = policies.first() {
        story.says(format!(
            "north's agent replicates group {GROUP} by `{}`, RPO {}",
            policy.schedule(),
            policy.rpo
        ));
    }
    let mut reader =
        StatusReader::of(farsite_store::Store::open(south.backend.clone(), None).await?, &founding.standby);
    wait_for_points(&story, &mut north, &mut reader, &policies, order.points).await?;

    // Disaster keeps no timetable; the seed's does for those who want to see it again.
    let pause = Duration::from_millis(500 + Seeded::new(seed ^ 0x0064_6973_6173_7465).below(5_500));
    let until = Instant::now() + pause;
    while Instant::now() < until {
        north.lives().map_err(Failure::failed)?;
        tokio::time::sleep(LOOK.min(pause)).await;
    }
    let before = status(&mut reader, &policies).await?;
    let (predicted_exposure_s, predicted_by_kind_s) =
        before.as_ref().map(figures::predicted).unwrap_or_default();
    story.says(format!(
        "`farsite status` says: exposure {}",
        predicted_exposure_s.map_or_else(|| "unknown".to_owned(), seconds)
    ));
    let processes_killed = north.destroy().map_err(Failure::failed)?;
    let disaster_ms = now_ms();
    story.says(context.out.paint(
        Tone::Bad,
        &format!("DISASTER: {processes_killed} processes of north got SIGKILL, its folder is gone"),
    ));

    story.says(format!("on call at south: farsite {}", recovery::shown(layout)));
    recovery::fail_over(layout, &this, context).await?;
    story.says("south is promoted; counting what north had promised");

    let restored = recovery::restored(layout, kind).await?;
    let true_loss = compare(&layout.promises(), &restored, disaster_ms)
        .map_err(Failure::io(format!("reading the promises in {}", layout.promises().display())))?;
    let (html, json) = recovery::find_report(layout)?;
    let reported = recovery::read_report(&json)?;
    let failures = figures::judge(&true_loss, &reported, kind.words());
    let (points, changed_bytes, shipped_bytes, log_bytes) = sent(&reader).await?;
    Ok(Played {
        figures: Figures {
            seed,
            database: kind.words(),
            store: order.store.words(),
            predicted_exposure_s,
            predicted_by_kind_s,
            reported,
            true_loss,
            points,
            changed_bytes,
            shipped_bytes,
            log_bytes,
            processes_killed,
            failures,
            report: copy_report(&html, seed),
            total_s: story.begun.elapsed().as_secs_f64(),
        },
        point: before
            .and_then(|status| status.newest_point)
            .map_or_else(|| "ID".to_owned(), |point| point.id.short()),
        server: south.server,
        port: south.port,
    })
}

async fn status(reader: &mut StatusReader, policies: &[Policy]) -> Result<Option<GroupStatus>, Failure> {
    let groups = reader.read(policies).await?;
    Ok(groups.into_iter().find(|status| status.group.as_str() == GROUP))
}

/// Whole recovery points, each told when it is there.
async fn wait_for_points(
    story: &Story<'_>,
    north: &mut North,
    reader: &mut StatusReader,
    policies: &[Policy],
    wanted: usize,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut told = 0;
    loop {
        north.lives().map_err(Failure::failed)?;
        if let Some(status) = status(reader, policies).await?
            && status.points > told
            && let Some(point) = &status.newest_point
        {
            told = status.points;
            let whole = if point.whole { "whole" } else { "PARTIAL" };
            story.says(format!(
                "recovery point {} ({whole}, {} items, {}): {} changed, {} shipped",
                point.id.short(),
                point.items,
                point.weakest,
                farsite_model::quantity::ByteSize(point.changed_bytes),
                farsite_model::quantity::ByteSize(point.shipped_bytes)
            ));
            if status.points - status.partial_points >= wanted {
                return Ok(());
            }
        }
        if begun.elapsed() > POINTS_LIMIT + Duration::from_secs(8) * wanted as u32 {
            return Err(Failure::failed(format!(
                "there are only {told} recovery points after {}; north's agent said:\n{}",
                seconds(begun.elapsed().as_secs_f64()),
                north.agent_said()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Points, changed bytes, shipped bytes, and bytes of shipped log.
async fn sent(reader: &StatusReader) -> Result<(usize, u64, u64, u64), Failure> {
    let store = reader.store();
    let group: GroupName = name(GROUP)?;
    let ledger = Ledger::open(store, &group).await?;
    let points = &ledger.state().points;
    let changed = points.iter().map(|point| point.said.changed_bytes).sum();
    let shipped = points.iter().map(|point| point.said.shipped_bytes).sum();
    let logs = store.backend.list(&format!("logs/{group}/"), None).await?;
    Ok((points.len(), changed, shipped, logs.iter().map(|object| object.size_bytes).sum()))
}

/// The report outlives the demo's folder.
fn copy_report(html: &std::path::Path, seed: u64) -> Option<PathBuf> {
    let to = std::env::temp_dir().join(format!("farsite-demo-{seed}-{}.html", std::process::id()));
    match std::fs::copy(html, &to) {
        Ok(_) => Some(to),
        Err(error) => {
            tracing::warn!("the report {} was not copied to {}: {error}", html.display(), to.display());
            None
        }
    }
}

impl Played {
    /// The sites stay: the store is served on, and the next commands are named.
    pub fn leave(self, layout: &Layout, context: &Context) -> Result<(), Failure> {
        let root = layout.root.display();
        if let (Some(server), Some(port)) = (self.server, self.port) {
            drop(server);
            let this = std::env::current_exe().map_err(Failure::io("finding this program"))?;
            let mut command = tokio::process::Command::new(this);
            command.args(["demo-store", "--port", &port.to_string(), "--root"]).arg(&layout.root);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
            command.spawn().map_err(Failure::io("starting the S3 server of the kept demo"))?;
        }
        let out = context.out;
        out.say("");
        out.say(out.paint(Tone::Strong, &format!("Both sites are kept in {root}. Try:")));
        let config = layout.south_config();
        out.say(format!("  export FARSITE_CONFIG={}", config.display()));
        for command in [
            "farsite status",
            "farsite points list",
            "farsite points verify",
            "farsite promotion list",
            "farsite promotion show",
            &format!("farsite points show {}", self.point),
            &format!("farsite restore {} files/keystone --to ./keystone-keys", self.point),
            "farsite accept            # or: farsite rollback",
        ] {
            out.say(format!("  {command}"));
        }
        out.say(format!("  farsite demo --remove {root}"));
        Ok(())
    }
}
