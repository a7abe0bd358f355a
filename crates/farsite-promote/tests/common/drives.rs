//! Orders and drivers for tests of whole promotions.
#![allow(dead_code)]

use std::sync::Arc;

use farsite_model::{Level, PromotionId};
use farsite_promote::accept::Rollback;
use farsite_promote::choose::PointChoice;
use farsite_promote::drive::Driving;
use farsite_promote::order::Order;
use farsite_promote::people::{Nobody, Watch};
use farsite_runbook::engine::{Always, Decision};
use tokio_util::sync::CancellationToken;

use super::north;

pub fn id(n: u64) -> PromotionId {
    PromotionId::from_random(0xf000_0000_0000_0000 + n)
}

pub fn order(n: u64) -> Order {
    Order {
        promotion: id(n),
        from: north(),
        groups: Vec::new(),
        level: Level::Application,
        point: PointChoice::Latest,
        take_flawed: false,
        disaster_at: None,
        runbook: None,
        assume_site_lost: true,
        fenced_by: None,
        reason: "fire".into(),
        who: "ann".into(),
    }
}

pub fn driving(driver: &str) -> Driving {
    watched(driver, Arc::new(()))
}

pub fn watched(driver: &str, watch: Arc<dyn Watch>) -> Driving {
    Driving {
        driver: driver.into(),
        others_are_dead: false,
        decider: Arc::new(Always(Decision::Stop)),
        people: Arc::new(Nobody),
        watch,
        cancel: CancellationToken::new(),
    }
}

pub fn back(driver: &str) -> Rollback {
    Rollback {
        driving: driving(driver),
        who: "ann".into(),
        reason: "north is back".into(),
        despite_failed_undo: false,
    }
}
