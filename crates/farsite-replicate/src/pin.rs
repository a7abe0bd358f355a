//! A reader's pin: a point that is being read at the standby goes in; until the pin ends, collection keeps what the point
//! needs. What must hold: a pin that cannot be had never keeps anybody from restoring; it is told, and the point is read all
//! the same.

use std::sync::Arc;
use std::time::Duration;

use farsite_model::config::Config;
use farsite_model::{GroupName, PointId, RunId};
use farsite_store::hex::Hex;
use farsite_store::keys::Signer;
use farsite_store::ledger::{Ledger, Refusal, Statement};
use farsite_store::{Store, StoreError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::connect;

/// Collection gives up readers that have said nothing for three days.
const RENEW: Duration = Duration::from_hours(24);
/// A store that does not answer must not hold up a restore for longer.
const LIMIT: Duration = Duration::from_secs(30);

/// Keeps points from collection while they are read. [`ReadPin::end`] ends it; a pin whose process was killed is given up
/// by collection after some days.
pub struct ReadPin {
    ledger: Ledger,
    signer: Arc<Signer>,
    run: RunId,
    renewal: JoinHandle<()>,
}

impl ReadPin {
    /// With the standby's key, or the operator's, whichever this host has.
    pub async fn of_host(
        config: &Config,
        store: &Store,
        group: &GroupName,
        points: &[PointId],
    ) -> Option<Self> {
        if let Ok(signer) = connect::standby_agent(config).or_else(|_| connect::operator(config)) {
            Self::begin(store, &Arc::new(signer), group, points).await
        } else {
            tracing::info!(%group, "this host has no key to pin what it reads: it is read without, and fails where collection removes it meanwhile");
            None
        }
    }

    /// `None`, and a warning, where the store does not take it.
    pub async fn begin(
        store: &Store,
        signer: &Arc<Signer>,
        group: &GroupName,
        points: &[PointId],
    ) -> Option<Self> {
        let run = RunId::from_random(u64::from_le_bytes(Hex::<8>::random().0));
        let pinned = async {
            let mut ledger = Ledger::open(store, group).await?;
            say(&mut ledger, signer, run, points).await?;
            Ok::<_, StoreError>(ledger)
        };
        let ledger = match tokio::time::timeout(LIMIT, pinned).await {
            Ok(Ok(ledger)) => ledger,
            Ok(Err(error)) => {
                warn(group, &error.to_string());
                return None;
            }
            Err(_) => {
                warn(group, &format!("the store did not answer within {}s", LIMIT.as_secs()));
                return None;
            }
        };
        let renewal = tokio::spawn(renew(store.clone(), signer.clone(), group.clone(), run, points.to_vec()));
        Some(Self { ledger, signer: signer.clone(), run, renewal })
    }

    pub async fn end(mut self) {
        let run = self.run;
        let ended = self.ledger.append(&self.signer, |_| Ok(Statement::PinEnded { run }));
        let why = match tokio::time::timeout(LIMIT, ended).await {
            // Refused: a failover meanwhile ended all pins.
            Ok(Ok(_) | Err(StoreError::Refused(_))) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the store did not answer within {}s", LIMIT.as_secs()),
        };
        tracing::warn!(group = %self.ledger.group(), "the pin {run} was not ended ({why}): collection gives it up after some days");
    }
}

/// A pin for what is mostly over soon: it is begun only when the reading takes longer than this.
const SOON: Duration = Duration::from_secs(10);

/// A [`ReadPin`] that begins after a while. Until then the points are kept by being the newest.
pub(crate) struct LaterPin {
    over: oneshot::Sender<()>,
    pin: JoinHandle<Option<ReadPin>>,
}

impl LaterPin {
    pub(crate) fn of_host(config: &Config, store: &Store, group: &GroupName, point: PointId) -> Self {
        let (over, is_over) = oneshot::channel();
        let (config, store, group) = (config.clone(), store.clone(), group.clone());
        let pin = tokio::spawn(async move {
            tokio::select! {
                _ = is_over => None,
                () = tokio::time::sleep(SOON) => ReadPin::of_host(&config, &store, &group, &[point]).await,
            }
        });
        Self { over, pin }
    }

    pub(crate) async fn end(self) {
        let _ = self.over.send(());
        if let Ok(Some(pin)) = self.pin.await {
            pin.end().await;
        }
    }
}

impl Drop for ReadPin {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

async fn say(ledger: &mut Ledger, signer: &Signer, run: RunId, points: &[PointId]) -> Result<(), StoreError> {
    let points = points.to_vec();
    ledger
        .append(signer, |state| match points.iter().find(|id| state.point(**id).is_none_or(|p| p.expired)) {
            Some(gone) => Err(Refusal::Other(format!("point {gone} has expired"))),
            None => Ok(Statement::PinBegun { run, points: points.clone() }),
        })
        .await
        .map(drop)
}

async fn renew(store: Store, signer: Arc<Signer>, group: GroupName, run: RunId, points: Vec<PointId>) {
    loop {
        tokio::time::sleep(RENEW).await;
        let again = async {
            let mut ledger = Ledger::open(&store, &group).await?;
            say(&mut ledger, &signer, run, &points).await
        };
        if let Err(error) = again.await {
            warn(&group, &error.to_string());
        }
    }
}

fn warn(group: &GroupName, why: &str) {
    tracing::warn!(
        %group,
        "what is read is not pinned ({why}): it is read all the same, and fails where collection removes it meanwhile"
    );
}
