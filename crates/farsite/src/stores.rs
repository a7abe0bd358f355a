//! From what a person types (a store's site, a group, the start of a point's id) to what is meant. A name that is not
//! there gets the nearest ones.

use farsite_model::config::Config;
use farsite_model::ids::find_short;
use farsite_model::nearest::did_you_mean;
use farsite_model::policy::Policy;
use farsite_model::time::parse_moment;
use farsite_model::{GroupName, PointId, SiteName};
use farsite_replicate::connect;
use farsite_store::Store;
use farsite_store::ledger::{self, CommittedPoint, GroupState, Ledger};
use jiff::Timestamp;

use crate::failure::Failure;

/// The site whose store is meant: the one that was named, this host's own, or the only one.
pub fn store_site(config: &Config, named: Option<&SiteName>) -> Result<SiteName, Failure> {
    if let Some(site) = named {
        config
            .store(site)
            .map_err(|why| Failure::usage(why).hint("stores stand under `stores:` in farsite.yaml"))?;
        return Ok(site.clone());
    }
    if config.stores.contains_key(&config.site) {
        return Ok(config.site.clone());
    }
    let mut sites = config.stores.keys();
    match (sites.next(), sites.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => Err(Failure::usage("no store is configured")
            .hint("add one under `stores:` in farsite.yaml; `farsite init` creates it and writes the lines")),
        (Some(_), Some(_)) => {
            let known: Vec<&str> = config.stores.keys().map(SiteName::as_str).collect();
            Err(Failure::usage(format!("several stores are configured ({})", known.join(", ")))
                .hint("say which one with --store SITE"))
        }
    }
}

/// Opens the store that is meant.
pub async fn open(config: &Config, named: Option<&SiteName>) -> Result<(SiteName, Store), Failure> {
    let site = store_site(config, named)?;
    let store = connect::store(config, &site).await?;
    Ok((site, store))
}

/// This host's policies, without their files.
pub fn policies(config: &Config) -> Result<Vec<Policy>, Failure> {
    Ok(config.load_policies()?.into_iter().map(|(_, policy)| policy).collect())
}

/// A group by name, or the only one of the store.
pub async fn group(store: &Store, named: Option<&str>) -> Result<GroupName, Failure> {
    let known = ledger::groups(store).await?;
    match named {
        Some(name) => {
            known.iter().find(|group| group.as_str() == name).cloned().ok_or_else(|| no_group(name, &known))
        }
        None => match known.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(Failure::failed("this store holds no group yet")
                .hint("`farsite replicate` at the source site makes its first recovery point")),
            many => Err(Failure::usage(format!("this store holds several groups: {}", list(many)))
                .hint("say which one")),
        },
    }
}

/// Groups by name, or all.
pub async fn groups(store: &Store, named: Option<&str>) -> Result<Vec<GroupName>, Failure> {
    match named {
        Some(name) => Ok(vec![group(store, Some(name)).await?]),
        None => Ok(ledger::groups(store).await?),
    }
}

/// The whole ledgers of groups.
pub async fn ledgers(store: &Store, names: &[GroupName]) -> Result<Vec<Ledger>, Failure> {
    let mut ledgers = Vec::with_capacity(names.len());
    for name in names {
        ledgers.push(Ledger::open(store, name).await?);
    }
    Ok(ledgers)
}

pub fn no_group(name: &str, known: &[GroupName]) -> Failure {
    let near = did_you_mean(name, known.iter().map(GroupName::as_str));
    Failure::usage(format!("no group is called {name}{near} (known: {})", list(known)))
}

fn list(groups: &[GroupName]) -> String {
    if groups.is_empty() {
        return "none".to_owned();
    }
    groups.iter().map(GroupName::as_str).collect::<Vec<_>>().join(", ")
}

/// A point out of `[GROUP] POINT` as it was typed.
pub struct Found {
    pub ledger: Ledger,
    pub point: PointId,
}

impl Found {
    pub fn committed(&self) -> Result<&CommittedPoint, Failure> {
        self.ledger
            .state()
            .point(self.point)
            .ok_or_else(|| Failure::failed(format!("point {} is not in the ledger any more", self.point)))
    }
}

/// Looks through one group or through all for a point: `latest`, `latest-proven`, a time, or the start of an id.
pub async fn point(store: &Store, group: Option<&str>, text: &str) -> Result<Found, Failure> {
    let by_word = matches!(text, "latest" | "latest-log" | "latest-proven") || moment(text).is_some();
    let among = if by_word { vec![self::group(store, group).await?] } else { groups(store, group).await? };
    let mut ledgers = ledgers(store, &among).await?;
    if by_word {
        let ledger = ledgers.swap_remove(0);
        let point = by_word_in(ledger.state(), text)?;
        return Ok(Found { ledger, point });
    }
    let ids: Vec<PointId> =
        ledgers.iter().flat_map(|l| l.state().points.iter().map(CommittedPoint::id)).collect();
    let point = *find_short("point", text, &ids).map_err(|error| {
        Failure::from(error)
            .hint("`farsite points list` shows what there is; `latest`, `latest-proven` and times work too")
    })?;
    let at = ledgers.iter().position(|l| l.state().point(point).is_some()).unwrap_or(0);
    Ok(Found { ledger: ledgers.swap_remove(at), point })
}

fn moment(text: &str) -> Option<Timestamp> {
    parse_moment(text, Timestamp::now()).ok()
}

fn by_word_in(state: &GroupState, text: &str) -> Result<PointId, Failure> {
    let none = |what: &str| Failure::failed(format!("group {} has no {what}", state.group));
    if text == "latest-proven" {
        let proven = state.points.iter().rev().find(|p| p.proven.is_some() && p.flaws().is_empty());
        return proven.map(CommittedPoint::id).ok_or_else(|| none("proven point yet"));
    }
    if let Some(at) = moment(text) {
        // All that it holds was captured by then.
        let before = state.points.iter().rev().filter(|p| !p.expired);
        return before
            .filter(|p| p.said.by_kind.values().all(|stamp| stamp.captured.0 <= at))
            .map(CommittedPoint::id)
            .next()
            .ok_or_else(|| none(&format!("point captured by {at:.0}")));
    }
    let newest =
        state.default_points().next().or_else(|| state.points.iter().rev().find(|p| p.flaws().is_empty()));
    newest.map(CommittedPoint::id).ok_or_else(|| none("whole, undamaged point"))
}
