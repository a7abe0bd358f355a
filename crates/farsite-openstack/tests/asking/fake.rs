//! A fake of Keystone, Glance and Cinder on loopback: it answers as they do where this project asks, from records that a test
//! gives it, and fails where the test wants it to. It is no OpenStack; the lab is.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, body::Body};
use serde_json::{Value, json};

pub const PASSWORD: &str = "hunter2";
pub const PROJECT: &str = "0123456789abcdef0123456789abcdef";

/// What happens to a request in place of an answer.
#[derive(Debug, Clone)]
pub enum Fault {
    Status(u16),
    /// After so long.
    Slow(Duration),
    /// 429 with `Retry-After: 0`.
    Busy,
}

/// How a download goes wrong.
#[derive(Debug, Clone)]
pub enum Cut {
    /// The connection breaks off after so many bytes.
    After(usize),
    /// No more comes after so many bytes, and the connection stands.
    StuckAfter(usize),
    /// This byte of the image is another one.
    Flipped(usize),
    /// So many bytes at once, each after a pause.
    Trickle(usize, Duration),
    /// The image goes when so many bytes of it were told.
    DeletedAfter(usize),
}

#[derive(Default)]
pub struct Content {
    pub images: Vec<Value>,
    pub volumes: Vec<Value>,
    pub snapshots: Vec<Value>,
    pub types: Vec<Value>,
    pub pools: Vec<&'static str>,
    pub projects: Vec<Value>,
    /// No more records in one answer than this.
    pub page: usize,
    /// Whether the user is an administrator.
    pub is_admin: bool,
    /// The newest microversion of Cinder is 3.this.
    pub minor: u32,
    /// By the beginning of a path: what happens to the next requests for it.
    pub faults: BTreeMap<&'static str, VecDeque<Fault>>,
    /// Every request: its method, path and query.
    pub asked: Vec<String>,
    /// The images' data, by their ids.
    pub data: BTreeMap<String, Vec<u8>>,
    /// Whether images can be read from the middle.
    pub has_ranges: bool,
    /// What happens to the next downloads, once they are let through.
    pub cuts: VecDeque<Cut>,
    /// Bytes of images that were told.
    pub told: usize,
    /// How many tokens were given; the last one alone is good.
    pub tokens: u32,
}

#[derive(Clone)]
pub struct Fake {
    pub url: String,
    content: Arc<Mutex<Content>>,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let content = Content {
            page: 1000,
            is_admin: true,
            minor: 71,
            has_ranges: true,
            pools: vec!["ctl@nfs#pool"],
            ..Content::default()
        };
        let fake = Self { url, content: Arc::new(Mutex::new(content)) };
        let routes = Router::new()
            .route("/v3/auth/tokens", axum::routing::post(token))
            .fallback(get(answer))
            .with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        fake
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        change(&mut self.content.lock().unwrap())
    }

    pub fn fails(&self, path: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.change(|content| content.faults.entry(path).or_default().extend(faults));
    }

    /// How many requests began so.
    pub fn asked(&self, start: &str) -> usize {
        self.change(|content| content.asked.iter().filter(|asked| asked.starts_with(start)).count())
    }

    /// A clouds.yaml for it.
    pub fn clouds_yaml(&self, folder: &Path) -> PathBuf {
        let file = folder.join("clouds.yaml");
        let text = format!(
            "clouds:\n  north:\n    region_name: One\n    auth: {{ auth_url: \"{}/v3\", username: farsite, password: {PASSWORD}, project_name: dr }}\n",
            self.url
        );
        std::fs::write(&file, text).unwrap();
        file
    }
}

pub fn volume(id: &str, more: Value) -> Value {
    let mut record = json!({
        "id": id, "name": format!("name of {id}"), "status": "available", "size": 1, "bootable": "false",
        "volume_type": "__DEFAULT__", "metadata": {}, "encrypted": false, "source_volid": null, "snapshot_id": null,
        "attachments": [], "created_at": "2026-11-01T00:00:00.000000", "updated_at": "2026-11-02T00:00:00.000000",
        "os-vol-tenant-attr:tenant_id": PROJECT, "os-vol-host-attr:host": "ctl@nfs#pool",
        "os-vol-mig-status-attr:name_id": null,
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

pub fn image(id: &str, more: Value) -> Value {
    let mut record = json!({
        "id": id, "name": format!("name of {id}"), "status": "active", "size": 1000, "os_hash_algo": "sha512",
        "os_hash_value": "ab", "owner": PROJECT, "visibility": "public", "disk_format": "raw", "os_hidden": false,
        "created_at": "2026-11-01T00:00:00Z", "updated_at": "2026-11-02T00:00:00Z", "stores": "file",
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

async fn fault(fake: &Fake, path: &str) -> Option<Response> {
    let fault = fake.change(|content| {
        let (_, queue) = content.faults.iter_mut().find(|(start, _)| path.starts_with(**start))?;
        queue.pop_front()
    })?;
    match fault {
        Fault::Status(status) => {
            let body = json!({ "error": { "message": "the fake was told to fail", "code": status } });
            Some((StatusCode::from_u16(status).unwrap(), Json(body)).into_response())
        }
        Fault::Slow(pause) => {
            tokio::time::sleep(pause).await;
            None
        }
        Fault::Busy => {
            Some((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")], "slow down").into_response())
        }
    }
}

async fn token(State(fake): State<Fake>, Json(asked): Json<Value>) -> Response {
    fake.change(|content| content.asked.push("POST /v3/auth/tokens".to_owned()));
    if let Some(failed) = fault(&fake, "/v3/auth/tokens").await {
        return failed;
    }
    let identity = &asked["auth"]["identity"];
    let secret = [
        &identity["password"]["user"]["password"],
        &identity["application_credential"]["secret"],
        &identity["token"]["id"],
    ];
    if !secret.iter().any(|secret| **secret == PASSWORD) {
        let body = json!({ "error": { "code": 401, "message": "The request you have made requires authentication." } });
        return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    }
    let number = fake.change(|content| {
        content.tokens += 1;
        content.tokens
    });
    let service = |kind: &str, path: &str| {
        let url = format!("{}{path}", fake.url);
        json!({ "type": kind, "endpoints": [
            { "interface": "public", "region": "One", "region_id": "One", "url": url },
            { "interface": "public", "region": "Two", "region_id": "Two", "url": "http://127.0.0.1:1" },
        ] })
    };
    let body = json!({ "token": {
        "user": { "id": "u", "name": "farsite" }, "project": { "id": PROJECT, "name": "dr" },
        "roles": [{ "id": "r", "name": "admin" }], "expires_at": "2030-01-01T00:00:00.000000Z",
        "catalog": [
            service("image", ""), service("block-storage", &format!("/volume/v3/{PROJECT}")), service("identity", "/v3"),
        ],
    } });
    let token = format!("token-{number}-{PASSWORD}");
    (StatusCode::CREATED, [("x-subject-token", token)], Json(body)).into_response()
}

async fn answer(State(fake): State<Fake>, uri: Uri, headers: HeaderMap, _: Request<Body>) -> Response {
    fake.change(|content| content.asked.push(format!("GET {uri}")));
    let (path, query) = (uri.path().to_owned(), query(&uri));
    if let Some(failed) = fault(&fake, &path).await {
        return failed;
    }
    let good = fake.change(|content| format!("token-{}-{PASSWORD}", content.tokens));
    if headers.get("x-auth-token").is_none_or(|token| *token != good) {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "error": { "message": "expired" } })))
            .into_response();
    }
    if let Some(id) = path.strip_prefix("/v2/images/") {
        return image_of(&fake, id, &headers);
    }
    let cinder = format!("/volume/v3/{PROJECT}");
    let (url, is_admin, minor) = fake.change(|content| (fake.url.clone(), content.is_admin, content.minor));
    let of_cinder = path.strip_prefix(&cinder);
    let body = match (path.as_str(), of_cinder) {
        ("/volume/v3/", _) => json!({ "versions": [{ "id": "v3.0", "version": format!("3.{minor}") }] }),
        ("/v2/images", _) => {
            let hidden = query.get("os_hidden").is_some_and(|hidden| hidden == "true");
            let records = fake.change(|c| c.images.clone());
            let records = records.into_iter().filter(|image| image["os_hidden"] == hidden).collect();
            page(&fake, "images", records, &query, |answer, marker| {
                // Glance's links are paths.
                answer["next"] = json!(format!("/v2/images?limit=9&marker={marker}"));
            })
        }
        ("/v2/tasks", _) if !is_admin => {
            let body = json!({ "message": "You are not authorized to complete tasks_api_access action." });
            return (StatusCode::FORBIDDEN, Json(body)).into_response();
        }
        ("/v2/tasks", _) => json!({ "tasks": [] }),
        ("/v3/projects", _) => {
            json!({ "projects": fake.change(|c| c.projects.clone()), "links": { "next": null } })
        }
        (_, Some("/scheduler-stats/get_pools")) if !is_admin => {
            let body = json!({ "forbidden": { "code": 403, "message": "Policy doesn't allow it." } });
            return (StatusCode::FORBIDDEN, Json(body)).into_response();
        }
        (_, Some("/scheduler-stats/get_pools")) => {
            let pool = |name: &&str| json!({ "name": name, "capabilities": { "storage_protocol": "nfs" } });
            json!({ "pools": fake.change(|c| c.pools.iter().map(pool).collect::<Vec<_>>()) })
        }
        (_, Some(of_cinder @ ("/volumes/detail" | "/snapshots/detail" | "/types"))) => {
            let (field, records) = fake.change(|content| match of_cinder {
                "/volumes/detail" => ("volumes", content.volumes.clone()),
                "/types" => ("volume_types", content.types.clone()),
                _ => ("snapshots", content.snapshots.clone()),
            });
            let records = records.into_iter().filter(|record| fits(record, &query)).collect();
            page(&fake, field, records, &query, |answer, marker| {
                // Behind a proxy Cinder names itself as it sees itself.
                let href = format!("http://inside.invalid{path}?limit=9&marker={marker}");
                answer[format!("{field}_links")] = json!([{ "rel": "next", "href": href }]);
            })
        }
        (_, Some(kind)) if kind.ends_with("/encryption") && !kind.contains("/luks-type/") => json!({}),
        (_, Some(kind)) if kind.ends_with("/encryption") => {
            let front = "front-end";
            json!({ "provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": front })
        }
        _ => {
            return (StatusCode::NOT_FOUND, Json(json!({ "error": { "message": format!("no {url}") } })))
                .into_response();
        }
    };
    if body.is_null() {
        let body = json!({ "badRequest": { "code": 400, "message": "marker not found" } });
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    Json(body).into_response()
}

/// One image, or its data.
fn image_of(fake: &Fake, id: &str, headers: &HeaderMap) -> Response {
    let (id, wants_data) = match id.strip_suffix("/file") {
        Some(id) => (id, true),
        None => (id, false),
    };
    let missing = || (StatusCode::NOT_FOUND, format!("No image found with ID {id}")).into_response();
    let Some(record) = fake.change(|c| c.images.iter().find(|image| image["id"] == *id).cloned()) else {
        return missing();
    };
    if !wants_data {
        return Json(record).into_response();
    }
    if record["status"] == "deactivated" && !fake.change(|content| content.is_admin) {
        return (StatusCode::FORBIDDEN, "Image data download is forbidden.").into_response();
    }
    let Some(mut data) = fake.change(|content| content.data.get(id).cloned()) else {
        return StatusCode::NO_CONTENT.into_response();
    };
    let all = data.len();
    let range = headers
        .get("range")
        .and_then(|range| range.to_str().unwrap().strip_prefix("bytes=")?.strip_suffix('-'));
    let start = range.map(|start| start.parse::<usize>().unwrap());
    if start.is_some() && !fake.change(|content| content.has_ranges) {
        return (StatusCode::BAD_REQUEST, "Getting images randomly from this store is not supported.")
            .into_response();
    }
    let cut = fake.change(|content| content.cuts.pop_front());
    if let Some(Cut::Flipped(at)) = cut {
        data[at] ^= 1;
    }
    let data = data.split_off(start.unwrap_or(0));
    let length = data.len();
    let told = match start {
        Some(start) => Response::builder()
            .status(206)
            .header("content-range", format!("bytes {start}-{}/{all}", all - 1)),
        None => Response::builder(),
    };
    let (fake, id) = (fake.clone(), id.to_owned());
    let stream = futures::stream::unfold(0usize, move |at| {
        let (cut, data, fake, id) = (cut.clone(), data.clone(), fake.clone(), id.clone());
        async move {
            let most = match cut {
                Some(Cut::Trickle(bytes, pause)) => {
                    tokio::time::sleep(pause).await;
                    bytes
                }
                Some(Cut::After(end)) if at >= end => {
                    // What was told before is to be read first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    return Some((Err(std::io::Error::other("the fake cut it")), at));
                }
                Some(Cut::StuckAfter(end)) if at >= end => std::future::pending().await,
                Some(Cut::DeletedAfter(end)) if at >= end => {
                    fake.change(|content| content.images.retain(|image| image["id"] != *id));
                    return Some((Err(std::io::Error::other("the fake deleted it")), at));
                }
                Some(Cut::After(end) | Cut::StuckAfter(end) | Cut::DeletedAfter(end)) => end - at,
                _ => 64 << 10,
            };
            let end = (at + most).min(data.len());
            fake.change(|content| content.told += end - at);
            (at < data.len()).then(|| (Ok(data[at..end].to_vec()), end))
        }
    });
    told.header("content-length", length).body(Body::from_stream(stream)).unwrap()
}

fn query(uri: &Uri) -> BTreeMap<String, String> {
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// The filters that Cinder knows and this project uses.
fn fits(record: &Value, query: &BTreeMap<String, String>) -> bool {
    let by_project = query.get("project_id").is_none_or(|id| record["os-vol-tenant-attr:tenant_id"] == **id);
    let by_metadata = query.get("metadata").is_none_or(|text| {
        let wanted: BTreeMap<String, String> = serde_json::from_str(&text.replace('\'', "\"")).unwrap();
        wanted.iter().all(|(key, value)| record["metadata"][key] == **value)
    });
    let by_update = query.get("updated_at").is_none_or(|text| {
        let since = text.strip_prefix("gte:").unwrap();
        record["updated_at"].as_str().is_some_and(|at| at[..19] >= since[..19])
    });
    by_project && by_metadata && by_update
}

/// A page of the records; null when the marker is none of them.
fn page(
    fake: &Fake,
    field: &str,
    records: Vec<Value>,
    query: &BTreeMap<String, String>,
    link: impl FnOnce(&mut Value, &str),
) -> Value {
    let start = match query.get("marker") {
        None => 0,
        Some(marker) => match records.iter().position(|record| record["id"] == **marker) {
            Some(at) => at + 1,
            None => return Value::Null,
        },
    };
    let asked: usize = query.get("limit").map_or(25, |limit| limit.parse().unwrap());
    let records = &records[start..];
    let shown = &records[..records.len().min(asked).min(fake.change(|content| content.page))];
    let mut answer = json!({ field: shown });
    if let Some(last) = shown.last().filter(|_| shown.len() < records.len()) {
        link(&mut answer, last["id"].as_str().unwrap());
    }
    answer
}
