//! The configurations of both sites, as `farsite init` and an operator would have written them.

use std::fmt::Write;
use std::path::Path;

use super::database::Kind;
use super::layout::{GROUP, Layout};
use super::store::{ACCESS_KEY, SECRET_KEY};
use crate::failure::Failure;
use crate::founding::{BLOCK_SECRET, Founded, Founding, OPERATOR_KEY, SOURCE_AGENT_KEY, STANDBY_AGENT_KEY};

const MARIADB_POLICY: &str = include_str!("../../../../policies/demo.yaml");
const SQLITE_POLICY: &str = include_str!("../../../../policies/demo-sqlite.yaml");
/// The variable with which the shipped policies name north's folder.
pub const NORTH_VARIABLE: &str = "FARSITE_DEMO_NORTH";

fn policy(kind: Kind) -> &'static str {
    match kind {
        Kind::Mariadb => MARIADB_POLICY,
        Kind::Sqlite => SQLITE_POLICY,
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let fail = || Failure::io(format!("writing {}", path.display()));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail())?;
    }
    std::fs::write(path, text).map_err(fail())
}

/// A YAML string that means what it says: JSON strings are YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What both configurations share; `folder` holds the site's credentials of an S3 store.
fn common(site: &str, url: &str, founded: &Founded, folder: &Path) -> String {
    let mut text = format!(
        "site: {site}\nsites:\n  north: {{ region: RegionOne }}\n  south: {{ region: RegionOne }}\nstores:\n  south:\n    url: {}\n    id: {}\n    recipients:\n",
        quoted(url),
        quoted(&founded.id)
    );
    for recipient in &founded.recipients {
        let _ = writeln!(text, "      - {recipient}");
    }
    if url.starts_with("s3://") {
        for (key, file) in [("access-key", ACCESS_KEY), ("secret-key", SECRET_KEY)] {
            let _ = writeln!(text, "    {key}: {}", quoted(&format!("file:{}", folder.join(file).display())));
        }
    }
    text
}

/// Writes north's farsite.yaml, and its policy as it ships.
pub fn write_north(layout: &Layout, kind: Kind, url: &str, founded: &Founded) -> Result<(), Failure> {
    let text = common("north", url, founded, &layout.north())
        + "state: ./state\n"
        + &format!("keys:\n  source-agent: {SOURCE_AGENT_KEY}\n  block-secret: {BLOCK_SECRET}\n");
    write(&layout.north_config(), &text)?;
    write(&layout.north().join("policies/demo.yaml"), policy(kind))
}

/// Writes south's farsite.yaml: where the failover restores to, and which service serves there.
pub fn write_south(
    layout: &Layout,
    kind: Kind,
    url: &str,
    founded: &Founded,
    founding: &Founding,
    service: &str,
) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(Failure::io("finding this program"))?;
    let mut text = common("south", url, founded, &layout.south());
    let _ = writeln!(text, "    identity: {}", founding.identity_name());
    text.push_str("state: ./state\n");
    let _ =
        writeln!(text, "keys:\n  operator: ../operator/{OPERATOR_KEY}\n  standby-agent: {STANDBY_AGENT_KEY}");
    let _ = writeln!(text, "places:\n  {GROUP}:");
    text.push_str(match kind {
        Kind::Mariadb => {
            "    mariadb:\n      datadir: ./cloud/mysql\n      socket: ./cloud/mysql.sock\n      server-args: [--innodb-buffer-pool-size=32M, --performance-schema=OFF]\n"
        }
        Kind::Sqlite => "    sqlite: { path: ./cloud/cloud.db }\n",
    });
    let shell = |verb: &str| {
        let config = layout.south_config();
        quoted(&format!(
            "'{}' demo-api {verb} --listen {service} --config '{}'",
            program.display(),
            config.display()
        ))
    };
    let images = kind.table("glance", "images");
    let _ = write!(
        text,
        "    glance: {{ path: ./cloud/glance/images }}\n    \
             cinder: {{ path: ./cloud/cinder/volumes }}\n    \
             files: {{ path: ./cloud/files }}\n    \
             variables:\n      \
               database_query: {}\n      \
               database_expect: \"1\"\n      \
               endpoint_table: {}\n      \
               old_endpoint: {NORTH_HOST}\n      \
               new_endpoint: {SOUTH_HOST}\n      \
               service_start: {}\n      \
               service_stop: {}\n      \
               service_status: {}\n      \
               service_url: {}\n",
        quoted(&format!("SELECT count(*) > 0 FROM {images}")),
        kind.table("keystone", "endpoint"),
        shell("start"),
        shell("stop"),
        shell("status"),
        quoted(&format!("http://{service}/healthz")),
    );
    write(&layout.south_config(), &text)?;
    // South knows the targets; the paths in its copy are north's, and nothing is read there.
    let variable = format!("${{env:{NORTH_VARIABLE}}}");
    let at_south = policy(kind).replace(&variable, &layout.north().display().to_string());
    write(&layout.south().join("policies/demo.yaml"), &at_south)
}

/// Hosts in Keystone's catalog before and after the failover.
pub const NORTH_HOST: &str = "north.demo";
pub const SOUTH_HOST: &str = "south.demo";
