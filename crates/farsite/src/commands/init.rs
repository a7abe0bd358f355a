//! `farsite init`: from an empty place to a replica store, with keys, starter configurations, and words about which file
//! goes to which machine.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use farsite_model::SiteName;
use farsite_model::config::StoreConfig;
use farsite_replicate::connect;
use farsite_store::backend;
use serde::Serialize;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};
use crate::founding::{BLOCK_SECRET, Founded, Founding, OPERATOR_KEY, SOURCE_AGENT_KEY, STANDBY_AGENT_KEY};
use crate::output::Tone;

/// The example beside which a person writes the first policy.
const EXAMPLE_POLICY: &str = include_str!("../../../../policies/cloud.yaml");

#[derive(Debug, clap::Args)]
pub struct Args {
    /// ./folder or s3://bucket/prefix?endpoint=…&region=… (credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)
    store: String,
    /// The standby site: where the store is
    #[arg(long, value_name = "SITE", default_value = "south")]
    site: SiteName,
    /// The site that is protected
    #[arg(long, value_name = "SITE", default_value = "north")]
    source: SiteName,
    /// Where the key files go, in one folder for each machine
    #[arg(long, value_name = "DIR", default_value = "./farsite-keys")]
    out: PathBuf,
    /// One more standby of a source that has keys: the folder with its source-agent.key and block.secret
    #[arg(long, value_name = "DIR")]
    source_keys: Option<PathBuf>,
    /// Make no recovery identity: who loses the standby's identity then loses the store
    #[arg(long)]
    single_recipient: bool,
}

/// What `init --json` prints.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    founded: &'a Founded,
    source: &'a SiteName,
    standby: &'a SiteName,
    tamper_resistant: bool,
    configurations: Vec<PathBuf>,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    if args.site == args.source {
        return Err(Failure::usage(format!("{} would be its own standby", args.site))
            .hint("--site is where the store is, --source is what it protects"));
    }
    let out =
        std::path::absolute(&args.out).map_err(Failure::io(format!("finding {}", args.out.display())))?;
    refuse_used_folder(&out)?;
    let founding = Founding {
        source: args.source.clone(),
        standby: args.site.clone(),
        out: out.clone(),
        single_recipient: args.single_recipient,
        source_keys: args.source_keys.clone(),
    };
    let url = absolute_url(&args.store)?;
    let access = connect::s3_access(&store_config(&url))?;
    let made_folder = !url.contains("://") && !Path::new(&url).exists();
    let backend = backend::open(&url, &access, true)?;
    let mut configurations = Vec::new();
    let result = founding
        .found(&backend, |founded| {
            configurations = write_configurations(&founding, founded, &url)?;
            Ok(())
        })
        .await;
    let founded = match result {
        Ok(founded) => founded,
        Err(failure) => {
            for file in &configurations {
                let _ = std::fs::remove_file(file);
            }
            remove_empty(&out);
            if made_folder {
                remove_empty(Path::new(&url));
            }
            return Err(failure);
        }
    };
    let tamper = founded.tamper;
    let answer = Answer {
        founded: &founded,
        source: &args.source,
        standby: &args.site,
        tamper_resistant: tamper.is_some_and(farsite_store::backend::race::TamperProbe::is_tamper_resistant),
        configurations,
    };
    if context.out.json {
        context.out.json(&answer);
    } else {
        tell(&answer, &founding, context);
    }
    Ok(DONE)
}

fn refuse_used_folder(out: &Path) -> Result<(), Failure> {
    let used = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if used {
        return Err(Failure::refused(format!("{} is not empty; nothing was changed", out.display()))
            .hint("name another folder with --out: key files are never overwritten"));
    }
    Ok(())
}

/// Removes folders that are empty, from the leaves up; what is not empty stays.
fn remove_empty(folder: &Path) {
    if let Ok(entries) = std::fs::read_dir(folder) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

/// A folder's whole path; an S3 address with the endpoint and region that AWS_* variables name, so that it means the
/// same on every machine.
fn absolute_url(url: &str) -> Result<String, Failure> {
    if !url.contains("://") {
        let path = std::path::absolute(url).map_err(Failure::io(format!("finding {url}")))?;
        return Ok(path.display().to_string());
    }
    let mut url = url.to_owned();
    for (key, variables) in
        [("endpoint", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]), ("region", ["AWS_REGION"; 2])]
    {
        let value =
            variables.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        if let Some(value) = value
            && url.starts_with("s3://")
            && !url.contains(&format!("{key}="))
        {
            url.push(if url.contains('?') { '&' } else { '?' });
            let _ = write!(url, "{key}={value}");
        }
    }
    Ok(url)
}

fn store_config(url: &str) -> StoreConfig {
    StoreConfig {
        url: url.to_owned(),
        id: None,
        recipients: Vec::new(),
        identity: None,
        access_key: None,
        secret_key: None,
        region: None,
        endpoint: None,
        path_style: None,
        single_recipient: false,
    }
}

/// The `stores:` part of a starter configuration.
fn stores_yaml(founding: &Founding, founded: &Founded, url: &str, identity: bool) -> String {
    let mut text =
        format!("stores:\n  {}:\n    url: {}\n    id: {}\n", founding.standby, quoted(url), founded.id);
    let _ = writeln!(text, "    recipients:");
    for recipient in &founded.recipients {
        let _ = writeln!(text, "      - {recipient}");
    }
    if founding.single_recipient {
        let _ = writeln!(text, "    single-recipient: true");
    }
    if identity {
        let _ = writeln!(text, "    identity: {}", founding.identity_name());
    }
    if url.starts_with("s3://") {
        let _ = writeln!(
            text,
            "    # access-key: file:/etc/farsite/s3-access-key   # or AWS_ACCESS_KEY_ID in the environment"
        );
        let _ =
            writeln!(text, "    # secret-key: file:/etc/farsite/s3-secret-key   # or AWS_SECRET_ACCESS_KEY");
    }
    text
}

/// A YAML string that means what it says.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn head(founding: &Founding, site: &SiteName, what: &str) -> String {
    format!(
        "# {what}\nsite: {site}\nsites:\n  {}: {{}}          # cloud: a name in clouds.yaml, region: RegionOne\n  {}: {{}}\n",
        founding.source, founding.standby
    )
}

/// What a source that is replicated already adds to its configuration.
const ADDITION: &str = "add-to-farsite.yaml";

fn addition(founding: &Founding, founded: &Founded, url: &str) -> String {
    format!(
        "# One more standby: add these to farsite.yaml at {}, each below the word that is there already, and {} to the\n\
         # `to:` of the policies that shall go there.\nsites:\n  {}: {{}}\n{}",
        founding.source,
        founding.standby,
        founding.standby,
        stores_yaml(founding, founded, url, false)
    )
}

fn write_configurations(founding: &Founding, founded: &Founded, url: &str) -> Result<Vec<PathBuf>, Failure> {
    let (source, standby) = (&founding.source, &founding.standby);
    let state = "state: /var/lib/farsite\nweb: 127.0.0.1:7400\n";
    let at_source = head(founding, source, &format!("Farsite at {source}: the agent that replicates."))
        + &stores_yaml(founding, founded, url, false)
        + state
        + &format!("keys:\n  source-agent: {SOURCE_AGENT_KEY}\n  block-secret: {BLOCK_SECRET}\n");
    let at_standby = head(founding, standby, &format!("Farsite at {standby}: the agent beside the store."))
        + &stores_yaml(founding, founded, url, true)
        + state
        + &format!("keys:\n  standby-agent: {STANDBY_AGENT_KEY}\n");
    let operator = head(founding, standby, &format!("Farsite for whoever promotes {standby}."))
        + &stores_yaml(founding, founded, url, true)
        + "state: ./state\n"
        + &format!("keys:\n  operator: {OPERATOR_KEY}\n")
        + PLACES;
    let addition = addition(founding, founded, url);
    let mut files = vec![
        (founding.standby_dir(), "farsite.yaml", at_standby.as_str()),
        (founding.operator_dir(), "farsite.yaml", operator.as_str()),
    ];
    match founding.source_keys {
        Some(_) => files.push((founding.source_dir(), ADDITION, addition.as_str())),
        None => files.extend([
            (founding.source_dir(), "farsite.yaml", at_source.as_str()),
            (founding.source_dir(), "policies/cloud.yaml.example", EXAMPLE_POLICY),
        ]),
    }
    let mut written = Vec::new();
    for (folder, name, text) in files {
        let path = folder.join(name);
        let fail = || Failure::io(format!("writing {}", path.display()));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail())?;
        }
        std::fs::write(&path, text).map_err(fail())?;
        written.push(path);
    }
    Ok(written)
}

/// What an operator fills in before the first drill.
const PLACES: &str = "\
# Where a promotion restores a group's items to, by group:
# places:
#   cloud:
#     mariadb: { datadir: /var/lib/mysql, socket: /run/mysqld/mysqld.sock }
#     glance: { path: /var/lib/glance/images }
#     cinder: { path: /var/lib/cinder/volumes }
#     files: { path: / }
";

fn tell(answer: &Answer<'_>, founding: &Founding, context: &Context) {
    let out = context.out;
    let Answer { founded, source, standby, .. } = answer;
    out.line(format!("{} is a replica store now; its id is {}.", founded.store, founded.id));
    if let Some(tamper) = founded.tamper {
        let tone = if tamper.is_tamper_resistant() { Tone::Good } else { Tone::Warn };
        out.line(format!("Create-only writes were raced and hold. {}.", out.paint(tone, tamper.in_words())));
    }
    out.line(format!("\nKeys are in {} (mode 0600, none was printed):", founding.out.display()));
    let rows: Vec<Vec<String>> = founded
        .files
        .iter()
        .map(|file| {
            let shown = file.path.strip_prefix(&founding.out).unwrap_or(&file.path);
            vec![file.machine.clone(), shown.display().to_string(), file.what.clone()]
        })
        .collect();
    out.table(&["machine", "file", "what it is for"], &rows);
    if founding.single_recipient {
        out.line(format!(
            "\n{} only {} opens this store. Keep a copy: who loses it loses everything that is stored.",
            out.paint(Tone::Warn, "One recipient:"),
            founding.identity_name()
        ));
    }
    if founding.source_keys.is_some() {
        out.line(format!(
            "\nThe source keeps its keys: what it signs is accepted here as well.\n\nNext:\n  \
             1. At {source}: add what {source}/{ADDITION} says to farsite.yaml, and {standby} to `to:` in the policies; then\n     \
                `farsite check`, and `systemctl reload farsite-agent`. The first copy goes to {standby} without holding the others up.\n  \
             2. Copy {standby}/ to the standby's host, operator/ to whoever may promote {standby}, with the policies; then delete this\n     \
                folder.\n  \
             3. At {standby}: fill in `places:` in operator/farsite.yaml, then `farsite check` and `farsite drill run`."
        ));
        return;
    }
    let offline = if founding.single_recipient { "" } else { " lock offline/ away;" };
    out.line(format!(
        "\nNext:\n  \
         1. Copy {source}/ to /etc/farsite on the hosts of {source}, {standby}/ to the standby's host, operator/ to whoever may\n     \
            promote {standby};{offline} then delete this folder.\n  \
         2. At {source}: write policies/cloud.yaml (an example lies there), then `farsite check` and `farsite agent`.\n     \
            Copy the policy to operator/policies too: targets and level are read there on the worst day.\n  \
         3. At {standby}: fill in `places:` in operator/farsite.yaml, then `farsite check` and `farsite drill run`."
    ));
}
