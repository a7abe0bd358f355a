//! Two processes that serve one group at one host, as for a standby that lags and runs beside the others.

use std::collections::BTreeSet;
use std::sync::Arc;

use farsite_model::clock::SystemClock;
use farsite_model::config::Host;
use farsite_openstack::SiteCloud;
use farsite_scenarios::ceph::Ceph;
use farsite_sources::remote::{self, Hello, Line};
use farsite_sources::{CaptureContext, Source};

use super::*;

fn context(sites: &TwoSites) -> CaptureContext {
    CaptureContext {
        clock: Arc::new(SystemClock),
        scratch: sites.path("scratch"),
        timeout: Duration::from_mins(1),
        frozen: false,
        kept: sites.path("kept"),
        owner: "ours".into(),
    }
}

async fn one_more(sites: &TwoSites) -> Box<dyn Source> {
    let config = sites.path("north/stor1.yaml").display().to_string();
    let binary = binary().display().to_string();
    let command = vec![binary, "--config".into(), config, "serve-sources".into()];
    let policy = sites.the_policy();
    let hello = Hello {
        host: here(),
        site: policy.site.clone(),
        group: policy.group.clone(),
        owner: "ours".into(),
        items: policy.items.clone(),
        patience: Duration::from_secs(30),
    };
    let line = Line::open(&Host { command, patience: None }, hello).await.unwrap();
    let config = sites.config("north");
    let cloud = Arc::new(SiteCloud::of(&config, &config.site));
    remote::source(&line, &policy.items[0], &cloud).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_run_lets_go_of_no_snapshot_that_another_process_of_the_group_reads() {
    let sites = TwoSites::founded("").await;
    let ceph = Ceph::start(&sites.path("ceph"));
    sites.policy(&format!(
        "  - cinder: {{ rbd: {{ pool: volumes, conf: {}, user: admin }}, select: {{ files: ['volume-*'] }} }}\n",
        ceph.conf.display()
    ));
    fs::write(sites.path("north/stor1.yaml"), "site: north\nsites: { north: {} }\nstate: state-of-stor1\n")
        .unwrap();
    for name in ["volume-a", "volume-b"] {
        ceph.run("rbd", &["create", &format!("volumes/{name}"), "--size", "16M"]);
    }
    let snapshots = |name: &str| -> BTreeSet<String> {
        ceph.names(&["snap", "ls", &format!("volumes/{name}")]).into_iter().collect()
    };
    let context = context(&sites);

    // One holds an instant of all images, and reads the first of them.
    let (laggard, common) = tokio::join!(one_more(&sites), one_more(&sites));
    assert!(laggard.prepare().await);
    let instant = laggard.instant(&context).await.unwrap().unwrap();
    let items = instant.items().await.unwrap();
    assert_eq!(items.len(), 2);
    let first = instant.capture(&items[0], &context).await.unwrap();
    let (held_a, held_b) = (snapshots("volume-a"), snapshots("volume-b"));
    assert_eq!((held_a.len(), held_b.len()), (1, 1));

    // The other makes its own snapshots, keeps them, and lets go of all that nobody is known to need.
    for item in &items {
        let capture = common.capture(item, &context).await.unwrap();
        let tracking = capture.tracking.unwrap();
        tokio::task::block_in_place(|| {
            let token = tracking.keep().unwrap();
            tracking.forget_others(&[token]);
        });
    }
    assert_eq!((snapshots("volume-a").len(), snapshots("volume-b").len()), (2, 2));
    assert!(snapshots("volume-a").is_superset(&held_a) && snapshots("volume-b").is_superset(&held_b));
    // Nor what is too large to be kept takes what is read now.
    common.forget(&items[0], &context).await;
    assert_eq!((snapshots("volume-a"), snapshots("volume-b").len()), (held_a.clone(), 2));

    // What was read is let go: the rest of the instant stays.
    drop(first);
    assert!(comes_true(Duration::from_secs(20), || snapshots("volume-a").is_empty()));
    let second = instant.capture(&items[1], &context).await.unwrap();
    let capture = common.capture(&items[1], &context).await.unwrap();
    tokio::task::block_in_place(|| capture.tracking.as_ref().unwrap().forget_others(&[]));
    assert!(snapshots("volume-b").is_superset(&held_b), "{:?}", snapshots("volume-b"));

    // With both processes everything goes.
    drop((second, capture, instant, laggard, common));
    assert!(comes_true(Duration::from_secs(30), || snapshots("volume-b").is_empty()));
    let under_way = sites.path("north/state-of-stor1/served/cloud/ours/kept/under-way");
    let is_empty = || fs::read_dir(&under_way).unwrap().count() == 0;
    assert!(comes_true(Duration::from_secs(10), is_empty), "a claim stays");
}
