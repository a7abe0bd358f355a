//! A cloud is asked: paging, tokens that expire, services that fail half-way or hang, and what must never be shown. The cloud is
//! a fake ([`fake`]).

#[allow(dead_code, reason = "shared with the tests of sources and stories")]
mod fake;

use std::time::{Duration, Instant};

use fake::{Fake, Fault, PASSWORD, PROJECT, image, volume};
use farsite_model::config::Site;
use farsite_model::policy::Select;
use farsite_openstack::records::{Image, Volume};
use farsite_openstack::{AskError, Client, Clouds, Limits, MadeFrom, SiteCloud, Told, Wanted};
use serde_json::json;

const QUICK: Limits = Limits {
    connect: Duration::from_secs(2),
    call: Duration::from_millis(500),
    tries: 4,
    pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(50),
};

fn client_of(text: &str) -> (tempfile::TempDir, Client) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clouds.yaml");
    std::fs::write(&file, text).unwrap();
    let clouds = Clouds::read(&file).unwrap();
    let cloud = clouds.find("north").unwrap();
    (folder, Client::new(cloud, None, QUICK, move || clouds.credentials("north")).unwrap())
}

fn client(fake: &Fake) -> (tempfile::TempDir, Client) {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fake.clouds_yaml(folder.path())).unwrap();
    client_of(&text)
}

async fn volumes(client: &Client) -> Result<Vec<Volume>, AskError> {
    client.volumes(&Wanted::default()).await?.all().await
}

fn ids(volumes: &[Volume]) -> Vec<&str> {
    volumes.iter().map(|volume| volume.id.as_str()).collect()
}

async fn with_volumes(count: usize) -> Fake {
    let fake = Fake::start().await;
    fake.change(|content| {
        content.volumes = (0..count).map(|n| volume(&format!("v{n}"), json!({}))).collect();
        content.page = 2;
    });
    fake
}

#[tokio::test]
async fn every_page_is_read_at_the_address_of_the_catalog() {
    let fake = with_volumes(5).await;
    fake.change(|content| content.images = (0..3).map(|n| image(&format!("i{n}"), json!({}))).collect());
    let (_folder, client) = client(&fake);
    assert_eq!(ids(&volumes(&client).await.unwrap()), ["v0", "v1", "v2", "v3", "v4"]);
    let listing = format!("GET /volume/v3/{PROJECT}/volumes/detail?all_tenants=1&limit=1000");
    assert_eq!(fake.asked(&listing), 3, "the links name another host, which nobody asks");
    let images: Vec<Image> = client.images(false).all().await.unwrap();
    assert_eq!((images.len(), images[0].stores.as_deref()), (3, Some("file")));
    assert_eq!(fake.asked("POST"), 1, "one token is enough");
}

#[tokio::test]
async fn a_page_at_a_time_is_held_and_a_listing_may_be_left() {
    let fake = with_volumes(6).await;
    let (_folder, client) = client(&fake);
    let mut pages = client.volumes(&Wanted::default()).await.unwrap().of(1);
    assert_eq!(ids(&pages.next().await.unwrap().unwrap()), ["v0"]);
    assert_eq!(ids(&pages.next().await.unwrap().unwrap()), ["v1"]);
    drop(pages);
    assert_eq!(fake.asked(&format!("GET /volume/v3/{PROJECT}/volumes")), 2);
}

#[tokio::test]
async fn a_token_that_is_refused_half_way_is_renewed() {
    let fake = with_volumes(5).await;
    let (_folder, client) = client(&fake);
    let mut pages = client.volumes(&Wanted::default()).await.unwrap();
    let mut all = pages.next().await.unwrap().unwrap();
    fake.change(|content| content.tokens += 1);
    while let Some(page) = pages.next().await.unwrap() {
        all.extend(page);
    }
    assert_eq!(all.len(), 5);
    assert_eq!(fake.asked("POST"), 2);
}

#[tokio::test]
async fn a_token_that_is_never_accepted_is_not_renewed_for_ever() {
    let fake = with_volumes(1).await;
    let (_folder, client) = client(&fake);
    fake.fails("/volume", (0..9).map(|_| Fault::Status(401)));
    let error = volumes(&client).await.unwrap_err();
    assert!(matches!(error, AskError::Status { status: 401, .. }), "{error}");
    assert_eq!(fake.asked("POST"), 2);
}

#[tokio::test]
async fn a_service_that_fails_half_way_is_asked_again_and_at_last_given_up() {
    let fake = with_volumes(5).await;
    let (_folder, client) = client(&fake);
    let mut pages = client.volumes(&Wanted::default()).await.unwrap();
    pages.next().await.unwrap();
    fake.fails("/volume", [Fault::Status(500), Fault::Status(503), Fault::Busy]);
    assert_eq!(ids(&pages.next().await.unwrap().unwrap()), ["v2", "v3"], "nothing is left out");
    fake.fails("/volume", (0..4).map(|_| Fault::Status(500)));
    let error = pages.next().await.unwrap_err();
    assert!(matches!(error, AskError::Status { status: 500, .. }), "{error}");
    assert!(error.to_string().contains("the fake was told to fail"), "{error}");
}

#[tokio::test]
async fn what_was_asked_wrongly_is_asked_once() {
    let fake = with_volumes(1).await;
    let (_folder, client) = client(&fake);
    fake.fails("/volume", [Fault::Status(400)]);
    assert!(volumes(&client).await.is_err());
    assert_eq!(fake.asked("GET"), 1);
    fake.fails("/v3/auth", [Fault::Status(503)]);
    fake.change(|content| content.tokens += 1);
    assert!(volumes(&client).await.is_err());
    assert_eq!(fake.asked("POST"), 2, "a token is asked for once more by whoever needs it");
}

#[tokio::test]
async fn a_service_that_hangs_costs_its_limit_and_no_more() {
    let fake = with_volumes(1).await;
    let (_folder, client) = client(&fake);
    volumes(&client).await.unwrap();
    fake.fails("/volume", [Fault::Slow(Duration::from_secs(30))]);
    assert_eq!(volumes(&client).await.unwrap().len(), 1, "the second try is answered");
    fake.fails("/volume", (0..4).map(|_| Fault::Slow(Duration::from_secs(30))));
    let begun = Instant::now();
    let error = volumes(&client).await.unwrap_err();
    assert!(matches!(error, AskError::TimedOut { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // Whoever has waited enough lets it fall.
    fake.fails("/volume", [Fault::Slow(Duration::from_secs(30))]);
    let begun = Instant::now();
    let cut = tokio::time::timeout(Duration::from_millis(50), volumes(&client)).await;
    assert!(cut.is_err() && begun.elapsed() < Duration::from_millis(300));
}

#[tokio::test]
async fn a_listing_whose_marker_was_deleted_begins_anew() {
    let fake = with_volumes(5).await;
    let (_folder, client) = client(&fake);
    let mut pages = client.volumes(&Wanted::default()).await.unwrap();
    let mut all = pages.next().await.unwrap().unwrap();
    fake.change(|content| content.volumes.remove(1));
    while let Some(page) = pages.next().await.unwrap() {
        all.extend(page);
    }
    for left in ["v0", "v2", "v3", "v4"] {
        assert!(ids(&all).contains(&left), "{:?}", ids(&all));
    }
}

#[tokio::test]
async fn a_part_of_the_volumes_is_never_taken_for_all() {
    let fake = with_volumes(3).await;
    fake.change(|content| content.is_admin = false);
    let (_folder, client) = client(&fake);
    let error = volumes(&client).await.unwrap_err();
    assert!(matches!(error, AskError::NotAll { .. }), "{error}");
    assert!(error.to_string().contains("user farsite, project dr"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_said_once_and_never_shown() {
    let fake = with_volumes(1).await;
    let text = format!(
        "clouds: {{ north: {{ auth: {{ auth_url: '{}', username: u, password: sesame-{PASSWORD} }} }} }}",
        fake.url
    );
    let (_folder, client) = client_of(&text);
    let error = volumes(&client).await.unwrap_err();
    assert!(matches!(error, AskError::Refused { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error}");
    assert_eq!(fake.asked("POST"), 1, "an account that is locked after some tries must not be");
}

#[tokio::test]
async fn no_error_shows_a_secret() {
    let fake = with_volumes(1).await;
    for fault in
        [Fault::Status(500), Fault::Status(403), Fault::Status(404), Fault::Slow(Duration::from_secs(9))]
    {
        let (_folder, client) = client(&fake);
        fake.fails("/volume", (0..4).map(|_| fault.clone()));
        let error = volumes(&client).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error:?}");
        fake.change(|content| content.faults.clear());
    }
}

#[tokio::test]
async fn a_keystone_that_is_not_there_is_named() {
    let (_folder, client) = client_of(
        "clouds: { north: { auth: { auth_url: 'http://127.0.0.1:1', username: u, password: p } } }",
    );
    let error = volumes(&client).await.unwrap_err();
    assert!(matches!(error, AskError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn volumes_are_selected_by_what_cinder_knows_of_them() {
    let fake = Fake::start().await;
    fake.change(|content| {
        let of_other = json!({ "os-vol-tenant-attr:tenant_id": "other", "metadata": { "dr": "yes" } });
        content.volumes = vec![
            volume("a", json!({ "metadata": { "dr": "yes", "tier": "1" }, "volume_type": "gold" })),
            volume("b", json!({ "metadata": { "dr": "no" }, "os-vol-host-attr:host": "ctl@ceph#pool" })),
            volume("c", of_other),
        ];
        content.types = vec![json!({ "id": "t", "name": "gold" })];
        content.projects =
            vec![json!({ "id": PROJECT, "name": "shop" }), json!({ "id": "other", "name": "bank" })];
    });
    let (_folder, client) = client(&fake);
    for (select, backend, expected) in [
        (json!({ "metadata": { "dr": "yes" } }), None, ["a", "c"].as_slice()),
        (json!({ "metadata": { "dr": "yes" }, "project": "shop" }), None, &["a"]),
        (json!({ "project": "other" }), None, &["c"]),
        (json!({ "names": ["name of [ab]", "*of b"] }), None, &["b"]),
        (json!({ "volume-type": "gold" }), None, &["a"]),
        (json!({ "names": ["*"] }), Some("nfs"), &["a", "c"]),
        (json!({ "names": ["*"], "ids": ["b"] }), None, &["b"]),
    ] {
        let select: Select = serde_json::from_value(select).unwrap();
        assert_eq!(ids(&client.selected(&select, backend).await.unwrap()), expected, "{select:?}");
    }
    for (select, near) in
        [(json!({ "project": "shopp" }), "shop"), (json!({ "volume-type": "golf" }), "gold")]
    {
        let select: Select = serde_json::from_value(select).unwrap();
        let error = client.selected(&select, None).await.unwrap_err().to_string();
        assert!(error.contains(&format!("did you mean {near}")), "{error}");
    }
}

#[tokio::test]
async fn what_a_volume_was_made_from_is_asked_once_and_then_for_what_is_new() {
    let fake = Fake::start().await;
    fake.change(|content| {
        content.volumes = vec![
            volume("a", json!({ "volume_image_metadata": { "image_id": "i" } })),
            volume("b", json!({ "snapshot_id": "s" })),
            volume("c", json!({ "source_volid": "b", "updated_at": "2026-11-03T00:00:00.000000" })),
        ];
        content.snapshots =
            vec![json!({ "id": "s", "name": "", "status": "available", "size": 1, "volume_id": "a",
                                         "created_at": "2026-11-01T00:00:00.000000" })];
    });
    let (_folder, client) = client(&fake);
    let cloud = SiteCloud::with(&"north".parse().unwrap(), client);
    let of = |id: &str| MadeFrom::Volume(id.to_owned());
    let image = MadeFrom::Image("i".to_owned());
    assert_eq!(cloud.told_of("c").await.made_from, [of("b"), of("a"), image.clone()]);
    assert_eq!(cloud.told_of("b").await.made_from, [of("a"), image]);
    let listings = format!("GET /volume/v3/{PROJECT}/volumes/detail");
    assert_eq!(fake.asked(&listings), 1);
    assert_eq!(cloud.told_of("unknown").await, Told::default());
    assert_eq!(fake.asked(&listings), 1, "a minute has not passed");
    // A site without a cloud tells nothing, and nobody waits for it.
    let nowhere = SiteCloud::new(&"south".parse().unwrap(), Site::default(), QUICK);
    assert_eq!(nowhere.told_of("c").await, Told::default());
}

#[tokio::test]
async fn a_cloud_that_was_given_up_keeps_nobody_else_of_the_run_waiting_and_what_was_known_counts() {
    let fake = Fake::start().await;
    fake.change(|content| content.volumes = vec![volume("a", json!({ "encrypted": true }))]);
    let (_folder, client) = client(&fake);
    let cloud = SiteCloud::with(&"north".parse().unwrap(), client).patient_for(Duration::from_millis(300));
    assert_eq!(cloud.told_of("a").await.is_encrypted, Some(true));
    fake.fails("/volume", std::iter::repeat_n(Fault::Slow(Duration::from_secs(5)), 9));
    let select = Select::default();
    let error = cloud.selected(&select, None).await.unwrap_err();
    assert!(matches!(error, AskError::TimedOut { .. }), "{error}");
    let (begun, asked) = (Instant::now(), fake.asked("GET"));
    assert!(cloud.selected(&select, None).await.is_err());
    assert_eq!(cloud.told_of("a").await.is_encrypted, Some(true));
    assert_eq!(fake.asked("GET"), asked, "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn whether_a_volume_is_encrypted_is_told_or_not_known_and_never_guessed() {
    let fake = Fake::start().await;
    fake.change(|content| {
        content.volumes = vec![volume("a", json!({ "encrypted": true })), volume("b", json!({}))];
    });
    let (_folder, client) = client(&fake);
    let cloud = SiteCloud::with(&"north".parse().unwrap(), client);
    for (id, expected) in [("a", Some(true)), ("b", Some(false)), ("unknown", None)] {
        assert_eq!(cloud.told_of(id).await.is_encrypted, expected, "{id}");
    }
}

#[tokio::test]
async fn what_changed_since_is_asked_for_where_cinder_can_tell() {
    let fake = Fake::start().await;
    fake.change(|content| {
        content.volumes = vec![
            volume("old", json!({})),
            volume("new", json!({ "updated_at": "2026-11-20T10:00:00.000000" })),
        ];
    });
    let wanted = Wanted { updated_since: Some("2026-11-20T00:00:00Z".parse().unwrap()), ..Wanted::default() };
    let (_folder, one) = client(&fake);
    assert_eq!(ids(&one.volumes(&wanted).await.unwrap().all().await.unwrap()), ["new"]);
    assert_eq!(fake.asked("GET /volume/v3/"), 3, "pools, versions, one page");
    fake.change(|content| content.minor = 59);
    let (_folder, older) = client(&fake);
    assert_eq!(ids(&older.volumes(&wanted).await.unwrap().all().await.unwrap()), ["old", "new"]);
}

#[tokio::test]
async fn types_are_listed_with_their_encryption() {
    let fake = Fake::start().await;
    fake.change(|content| {
        content.types = vec![
            json!({ "id": "plain-type", "name": "plain" }),
            json!({ "id": "luks-type", "name": "luks" }),
        ];
    });
    let (_folder, client) = client(&fake);
    let types = client.volume_types().await.unwrap();
    assert_eq!(types[0].encryption, None);
    let luks = types[1].encryption.as_ref().unwrap();
    assert_eq!((luks.provider.as_str(), luks.key_size), ("luks", Some(256)));
}

#[tokio::test]
async fn an_application_credential_and_a_token_open_a_cloud_too() {
    let fake = with_volumes(1).await;
    for auth in [
        format!("application_credential_id: a, application_credential_secret: {PASSWORD}"),
        format!("token: {PASSWORD}"),
    ] {
        let text = format!(
            "clouds: {{ north: {{ region_name: One, auth: {{ auth_url: '{}', {auth} }} }} }}",
            fake.url
        );
        let (_folder, client) = client_of(&text);
        assert_eq!(volumes(&client).await.unwrap().len(), 1);
    }
}
