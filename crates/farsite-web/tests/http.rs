//! The server as its clients see it: over TCP.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use farsite_model::status::{GroupStatus, Phase, PointStatus};
use farsite_model::{CaptureTime, Consistency, Epoch, GroupName, Level, PointId, SiteName, StoreTime};
use farsite_web::{STATE_LIMIT, Server, StateSource, StatusDocument, WebError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

struct Known(Vec<GroupStatus>);

#[async_trait]
impl StateSource for Known {
    async fn groups(&self) -> Vec<GroupStatus> {
        self.0.clone()
    }
}

struct Hanging;

#[async_trait]
impl StateSource for Hanging {
    async fn groups(&self) -> Vec<GroupStatus> {
        pending().await
    }
}

fn group(name: &str) -> GroupStatus {
    let point = PointId::from_random(0xabcd_ef01_0000_0001);
    GroupStatus {
        group: GroupName::new(name).unwrap(),
        site: SiteName::new("north").unwrap(),
        to: vec![SiteName::new("south").unwrap()],
        level: Some(Level::Application),
        phase: Phase::Replicating,
        progression: "waits for its schedule".to_owned(),
        epoch: Epoch(1),
        primary: SiteName::new("north").unwrap(),
        newest_point: Some(PointStatus {
            id: point,
            captured: CaptureTime("2026-11-24T03:00:00Z".parse().unwrap()),
            committed: StoreTime("2026-11-24T03:00:30.5Z".parse().unwrap()),
            whole: true,
            proven: true,
            items: 3,
            weakest: Consistency::Crash,
            changed_bytes: 1 << 30,
            shipped_bytes: 3 << 20,
            suspicious: vec!["volume/a: 90% of it was overwritten".into()],
        }),
        newest_proven: Some(point),
        exposure_s: Some(300.0),
        exposure_by_kind_s: BTreeMap::from([("mariadb".to_owned(), 2.0), ("cinder".to_owned(), 300.0)]),
        rpo_target_s: Some(1200.0),
        rpo_ratio: Some(0.25),
        log_lag_s: None,
        clock_ahead_ms: Some(-40),
        kept: None,
        points: 24,
        partial_points: 1,
        suspicious_points: 2,
        warnings: Vec::new(),
    }
}

fn late(name: &str) -> GroupStatus {
    GroupStatus { exposure_s: Some(1800.0), rpo_ratio: Some(1.5), ..group(name) }
}

async fn start(source: impl StateSource + 'static) -> (SocketAddr, impl AsyncFnOnce()) {
    let server = Server::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(Arc::new(source), async move {
        let _ = stopped.await;
    }));
    (address, async move || {
        drop(stop);
        running.await.unwrap().unwrap();
    })
}

async fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_ascii_lowercase(), body.to_owned())
}

async fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    request(address, "GET", path).await
}

#[tokio::test]
async fn the_dashboard_shows_what_a_person_needs_at_3_am() {
    let (address, stop) = start(Known(vec![group("cloud")])).await;
    let (code, head, body) = get(address, "/").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: text/html") && head.contains("cache-control: no-store"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    for shown in [
        "1 of 1 group well",
        "north → south",
        "replicating",
        "waits for its schedule",
        "5m",
        "target 20m",
        "within the target",
        "width:18.8%",
        "mariadb",
        "2s",
        "abcdef01",
        "2026-11-24T03:00:00Z",
        "the newest point",
        "24, of which 1 partial",
        "prefers-color-scheme: dark",
    ] {
        assert!(body.contains(shown), "{shown} is missing in:\n{body}");
    }
    assert!(
        !body.contains("src=\"http") && !body.contains("href=\"http"),
        "nothing is fetched from elsewhere"
    );
    stop().await;
}

#[tokio::test]
async fn the_group_that_misses_its_target_comes_first_and_says_what_to_type() {
    let (address, stop) = start(Known(vec![group("a-well"), late("b-late")])).await;
    let (_, _, body) = get(address, "/").await;
    assert!(body.find("b-late").unwrap() < body.find("a-well").unwrap());
    for shown in ["1 of 2 groups to act on", "target missed by 10m", "farsite status b-late"] {
        assert!(body.contains(shown), "{shown} is missing in:\n{body}");
    }
    stop().await;
}

#[tokio::test]
async fn an_open_page_refreshes_from_the_same_renderer() {
    let (address, stop) = start(Known(vec![group("cloud")])).await;
    let (_, _, page) = get(address, "/").await;
    assert!(page.contains("api/status?format=cards"));
    let (code, head, cards) = get(address, "/api/status?format=cards").await;
    assert!(code == 200 && head.contains("text/html"), "{head}");
    assert!(cards.starts_with("<section") && cards.contains("data-title=\"1 of 1 group well\""), "{cards}");
    stop().await;
}

#[tokio::test]
async fn a_group_without_a_point_is_in_initial_sync_and_not_at_zero() {
    let empty = GroupStatus {
        phase: Phase::InitialSync,
        newest_point: None,
        newest_proven: None,
        exposure_s: None,
        exposure_by_kind_s: BTreeMap::new(),
        rpo_ratio: None,
        clock_ahead_ms: None,
        points: 0,
        partial_points: 0,
        suspicious_points: 0,
        ..group("new")
    };
    let (address, stop) = start(Known(vec![empty])).await;
    let (code, _, body) = get(address, "/").await;
    assert_eq!(code, 200);
    assert!(body.contains("initial sync") && body.contains("a disaster now would lose all"), "{body}");
    let (_, _, metrics) = get(address, "/metrics").await;
    assert!(!metrics.contains("farsite_exposure_seconds") && !metrics.contains("-1"), "{metrics}");
    assert!(metrics.contains("phase=\"initial-sync\"} 1\n"), "{metrics}");
    stop().await;
}

#[tokio::test]
async fn what_comes_from_the_state_cannot_become_markup() {
    let evil = GroupStatus {
        progression: "<img src=x onerror=alert(1)>".to_owned(),
        warnings: vec!["</p><script>alert(2)</script>".to_owned()],
        exposure_by_kind_s: BTreeMap::from([("x\"y<b>".to_owned(), 1.0)]),
        ..group("cloud")
    };
    let (address, stop) = start(Known(vec![evil])).await;
    for path in ["/", "/api/status?format=cards"] {
        let (_, _, body) = get(address, path).await;
        assert!(
            !body.contains("<img") && !body.contains("<script>alert") && !body.contains("<b>\""),
            "{body}"
        );
        assert!(body.contains("&lt;img"), "{body}");
    }
    let (_, _, metrics) = get(address, "/metrics").await;
    assert!(metrics.contains(r#"item="x\"y<b>"} 1"#), "{metrics}");
    stop().await;
}

#[tokio::test]
async fn the_json_is_the_status_that_the_command_line_prints() {
    let groups = vec![group("cloud"), late("late")];
    let (address, stop) = start(Known(groups.clone())).await;
    let (code, head, body) = get(address, "/api/status").await;
    assert!(code == 200 && head.contains("content-type: application/json"), "{head}");
    let document: StatusDocument = serde_json::from_str(&body).unwrap();
    assert_eq!(document.groups, groups);
    stop().await;
}

#[tokio::test]
async fn prometheus_can_read_every_line() {
    let (address, stop) = start(Known(vec![group("cloud"), late("late")])).await;
    let (code, head, body) = get(address, "/metrics").await;
    assert!(code == 200 && head.contains("text/plain; version=0.0.4"), "{head}");
    for line in [
        r#"farsite_exposure_seconds{group="cloud",site="north",to="south"} 300"#,
        r#"farsite_exposure_seconds{group="cloud",site="north",to="south",item="mariadb"} 2"#,
        r#"farsite_rpo_target_seconds{group="late",site="north",to="south"} 1200"#,
        r#"farsite_rpo_ratio{group="late",site="north",to="south"} 1.5"#,
        r#"farsite_last_point_capture_timestamp_seconds{group="cloud",site="north",to="south"} 1795489200"#,
        r#"farsite_last_point_commit_timestamp_seconds{group="cloud",site="north",to="south"} 1795489230.5"#,
        r#"farsite_clock_skew_seconds{group="cloud",site="north",to="south"} -0.04"#,
        r#"farsite_partial_points_total{group="cloud",site="north",to="south"} 1"#,
        r#"farsite_suspicious_points{group="cloud",site="north",to="south"} 2"#,
        r#"farsite_group_phase{group="cloud",site="north",to="south",phase="replicating"} 1"#,
        r#"farsite_group_phase{group="cloud",site="north",to="south",phase="damaged"} 0"#,
    ] {
        assert!(body.lines().any(|l| l == line), "{line} is missing in:\n{body}");
    }
    let mut families = Vec::new();
    for line in body.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let name = head.split(' ').next().unwrap();
            assert!(!families.contains(&name), "{name} has two heads");
            families.push(name);
        } else if !line.starts_with('#') {
            let (name, rest) = line.split_once('{').unwrap();
            assert_eq!(families.last(), Some(&name), "samples of a family stand together");
            rest.rsplit_once("} ").unwrap().1.parse::<f64>().unwrap();
        }
    }
    stop().await;
}

#[tokio::test]
async fn an_unknown_address_names_the_known_ones_and_nothing_can_be_changed() {
    let (address, stop) = start(Known(Vec::new())).await;
    let (code, _, body) = get(address, "/admin").await;
    assert!(code == 404 && body.contains("/api/status"), "{body}");
    assert_eq!(request(address, "POST", "/api/status").await.0, 405);
    let (code, _, body) = get(address, "/").await;
    assert!(code == 200 && body.contains("no protection group yet"), "{body}");
    stop().await;
}

#[tokio::test]
async fn a_source_that_hangs_is_told_in_time_and_does_not_hang_the_health_check() {
    let (address, stop) = start(Hanging).await;
    let started = Instant::now();
    let (health, page, json, metrics) = tokio::join!(
        async {
            let answer = get(address, "/healthz").await;
            (answer, started.elapsed())
        },
        get(address, "/"),
        get(address, "/api/status"),
        get(address, "/metrics"),
    );
    assert_eq!((health.0.0, health.0.2.as_str()), (200, "ok\n"));
    assert!(health.1 < STATE_LIMIT / 2, "{:?}", health.1);
    for (code, _, body) in [page, json, metrics] {
        assert_eq!(code, 503);
        assert!(body.contains("could not be read in time") && body.contains("farsite check"), "{body}");
    }
    stop().await;
}

#[tokio::test]
async fn a_silent_client_does_not_keep_the_agent_from_ending() {
    let (address, stop) = start(Known(Vec::new())).await;
    let silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(get(address, "/healthz").await.0, 200);
    tokio::time::timeout(Duration::from_secs(8), stop()).await.unwrap();
    drop(silent);
}

#[tokio::test]
async fn a_taken_address_is_named_with_what_to_do() {
    let taken = Server::bind("127.0.0.1:0").await.unwrap();
    let error = Server::bind(&taken.local_addr().to_string()).await.unwrap_err();
    assert!(matches!(error, WebError::Bind { .. }));
    let text = error.to_string();
    assert!(text.contains(&taken.local_addr().to_string()) && text.contains("web:"), "{text}");
}
