//! Policies: what the shipped ones say, and how everything that is wrong is reported.

use std::path::PathBuf;

use farsite_model::policy::{Databases, Item, Keep, Log, Policy};
use farsite_model::quantity::{ByteSize, Rate, Span};
use farsite_model::{Consistency, Level};

fn shipped(name: &str) -> (String, String) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../policies").join(name);
    (format!("policies/{name}"), std::fs::read_to_string(path).unwrap())
}

fn demo_environment(name: &str) -> Option<String> {
    (name == "FARSITE_DEMO_NORTH").then(|| "/demo/north".to_owned())
}

const GOOD: &str = r#"group: cloud
site: north
to: [south]
level: application
schedule: "*/15 * * * *"
rpo: 20m
rto: 1h
items:
  - mariadb: { socket: /run/mysqld/mysqld.sock }
  - files: { paths: [/etc/keystone] }
"#;

/// The message for the good policy with one text replaced by another.
fn wrong(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    Policy::parse("p.yaml", &GOOD.replace(from, to)).map(|_| ()).unwrap_err().to_string()
}

/// The message begins with the place, and says all of this.
fn assert_says(message: &str, place: &str, says: &[&str]) {
    assert!(message.starts_with(&format!("p.yaml:{place}: ")), "not at {place}: {message}");
    for text in says {
        assert!(message.contains(text), "no {text:?} in {message}");
    }
}

#[test]
fn the_shipped_policy_says_what_its_comments_say() {
    let (file, text) = shipped("cloud.yaml");
    let policy = Policy::parse(&file, &text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (policy.group.as_str(), policy.site.as_str(), policy.to[0].as_str()),
        ("cloud", "north", "south")
    );
    assert_eq!((policy.level, policy.rpo), (Level::Application, Span::from_secs(1200)));
    assert_eq!(policy.schedule().to_string(), "*/15 * * * *");
    let ids: Vec<String> = policy.items.iter().map(|item| item.id().to_string()).collect();
    assert_eq!(ids, ["mariadb/main", "glance/main", "cinder/nfs", "files/keystone", "volume/extra.raw"]);
    assert_eq!(policy.items[0].on(), Some("ctl1"));
    assert!(policy.items[0].ships_log());
    assert_eq!(policy.items[4].consistency(), Some(Consistency::Crash));
    assert_eq!(policy.items[4].hooks().before_capture[0].run, ["fsfreeze", "--freeze", "/srv/extra"]);
    assert_eq!((policy.retention.last, policy.retention.daily, policy.retention.keep), (24, 7, Keep::Proven));
    assert_eq!(policy.hooks.after_commit[0].run[..2], ["/bin/sh", "-c"]);
    assert_eq!(policy.drill.as_ref().unwrap().runbook.as_deref(), Some("application"));
    assert_eq!(policy.alerts.mail, ["dr@example.org"]);
    assert_eq!((policy.block_size, policy.memory), (ByteSize(64 << 10), ByteSize(256 << 20)));
    assert_eq!(policy.warnings(), [] as [&str; 0]);
}

#[test]
fn bandwidth_is_lower_in_office_hours() {
    let (file, text) = shipped("cloud.yaml");
    let policy =
        Policy::parse(&file, &text.replacen("level: app", "tz: Europe/Berlin\nlevel: app", 1)).unwrap();
    let at = |text: &str| policy.bandwidth.limit_at(text.parse().unwrap());
    // 2026-11-24 is a Tuesday; Berlin is an hour ahead of UTC.
    assert_eq!(at("2026-11-24T12:00:30Z"), Some(Rate(50 << 20)));
    assert_eq!(at("2026-11-24T17:59:59Z"), Some(Rate(50 << 20)));
    assert_eq!(at("2026-11-24T18:00:00Z"), Some(Rate(200 << 20)));
    assert_eq!(at("2026-11-28T12:00:00Z"), Some(Rate(200 << 20)));
}

#[test]
fn the_demos_policies_find_their_files_through_the_environment() {
    for name in ["demo.yaml", "demo-sqlite.yaml"] {
        let (file, text) = shipped(name);
        let policy =
            Policy::parse_with(&file, &text, demo_environment).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((policy.rpo, policy.rto), (Span::from_secs(20), Some(Span::from_secs(120))));
        assert_eq!(policy.schedule().longest_pause().as_secs(), 5);
        match &policy.items[0] {
            Item::Mariadb(mariadb) => {
                assert_eq!(mariadb.socket, Some("/demo/north/mysql.sock".into()));
                assert_eq!((&mariadb.databases, mariadb.log), (&Databases::All, Log::Continuous));
            }
            Item::Sqlite(sqlite) => assert_eq!(sqlite.path, PathBuf::from("/demo/north/cloud.db")),
            other => panic!("{other:?}"),
        }
        let freeze = &policy.items[2].hooks().before_capture[0];
        assert_eq!(freeze.run, ["/demo/north/freeze-volumes"]);
        assert_eq!(freeze.timeout, Span::from_secs(10));
        let Item::Files(files) = &policy.items[3] else { panic!() };
        assert_eq!(files.paths[1], PathBuf::from("/demo/north/keystone/credential-keys"));
        assert_eq!(policy.warnings(), [] as [&str; 0]);
    }
}

#[test]
fn a_variable_that_is_not_set_is_named_with_its_line() {
    let (_, text) = shipped("demo.yaml");
    let line = text.lines().position(|line| line.contains("mysql.sock")).unwrap() + 1;
    let error = Policy::parse_with("p.yaml", &text, |_| None).unwrap_err();
    assert_eq!(error.line, line, "{error}");
    assert!(error.message.contains("FARSITE_DEMO_NORTH is not set"), "{error}");
    // In a list that spans lines, its own line.
    let text = GOOD.replace("paths: [/etc/keystone]", "paths: [/etc/keystone,\n      \"${env:NOWHERE}/x\"]");
    let error = Policy::parse_with("p.yaml", &text, |_| None).unwrap_err();
    assert_says(&error.to_string(), "11:7", &["NOWHERE is not set"]);
}

#[test]
fn an_unknown_key_is_an_error_with_the_nearest_known_one() {
    assert_says(
        &wrong("schedule:", "shedule:"),
        "5:1",
        &["unknown key \"shedule\"; did you mean schedule?\n  5 | shedule: \"*/15 * * * *\"\n    | ^"],
    );
    assert_says(&wrong("{ socket:", "{ sokcet:"), "9:16", &["unknown key \"sokcet\"; did you mean socket"]);
    assert_says(&wrong("- files:", "- fiels:"), "10:5", &["\"fiels\"", "did you mean files?"]);
    assert_says(
        &wrong("rto: 1h", "drill: { schedule: \"@daily\", levle: data }"),
        "7:30",
        &["did you mean level"],
    );
}

#[test]
fn a_wrong_type_or_value_says_what_is_expected() {
    assert_says(&wrong("to: [south]", "to: south"), "3:5", &["expected"]);
    assert_says(&wrong("level: application", "level: aplication"), "4:8", &["did you mean application?"]);
    assert_says(&wrong("rpo: 20m", "rpo: 20"), "6:6", &["\"20\" is not a duration", "`20m`"]);
    assert_says(&wrong("rpo: 20m", "rpo: 0s"), "6:6", &["never be met"]);
    assert_says(&wrong("group: cloud", "group: my/cloud"), "1:8", &["group name", "only letters, digits"]);
    assert_says(&wrong("sock }", "sock, port: many }"), "9:55", &["expected"]);
    assert_says(&wrong("sock }", "sock, databases: some }"), "9:60", &["expected `all` or a list"]);
    assert_says(&wrong("rto: 1h", "block-size: 65000B"), "7:13", &["power of two from 4KiB to 4MiB"]);
    assert_says(&wrong("rto: 1h", "memory: 100KiB"), "7:9", &["at least 1MiB"]);
    assert_says(&wrong("rto: 1h", "retention: { keep: none }"), "7:12", &["keeps no points"]);
    assert_says(&wrong("rto: 1h", "bandwidth: { limit: 0B/s }"), "7:21", &["stop replication"]);
    assert_says(&wrong("rto: 1h", "hooks: { after-commit: [7] }"), "7:25", &["a shell command, or"]);
    assert_says(&wrong("rto: 1h", "alerts: { mail: me }"), "7:17", &["not a mail address"]);
    assert_says(&wrong("rto: 1h", "alerts: { webhook: alerts }"), "7:20", &["https://"]);
}

#[test]
fn a_key_that_stands_twice_or_is_missing_is_an_error() {
    assert_says(&wrong("rto: 1h", "rpo: 1h"), "7:1", &["\"rpo\" stands here twice"]);
    assert!(wrong("rpo: 20m\n", "").contains("the key \"rpo\" is missing; add `rpo: …`"));
}

#[test]
fn a_bad_schedule_is_reported_at_its_own_place() {
    assert_says(&wrong("*/15 * * * *", "*/15 * * *"), "5:11", &["4 fields, where 5 or 6 are needed"]);
    assert_says(&wrong("*/15 * * * *", "0 25 * * *"), "5:11", &["hour: 25 is out of range", "0 to 23"]);
    assert_says(&wrong("*/15 * * * *", "0 0 30 2 *"), "5:11", &["never due", "February"]);
    assert_says(
        &wrong("rto: 1h", "drill: { schedule: \"0 4 * * sonday\" }"),
        "7:20",
        &["day of week: \"sonday\" is not a number or name"],
    );
    assert_says(
        &wrong("rto: 1h", "bandwidth: { night: { cron: \"* 25 * * *\", limit: 1MiB/s } }"),
        "7:29",
        &["hour: 25"],
    );
    assert_says(
        &wrong("rto: 1h", "tz: Europe/Berln"),
        "7:5",
        &["\"Europe/Berln\" is not known", "Europe/Berlin"],
    );
}

#[test]
fn a_policy_that_protects_nothing_or_itself_is_refused() {
    assert_says(&wrong("to: [south]", "to: [east, north]"), "3:12", &["north would be its own standby"]);
    assert_says(&wrong("to: [south]", "to: [south, south]"), "3:13", &["a second time"]);
    assert_says(&wrong("to: [south]", "to: []"), "3:5", &["replicates to no site"]);
    let nothing = GOOD.split("items:").next().unwrap().to_owned() + "items: []\n";
    assert_says(&Policy::parse("p.yaml", &nothing).unwrap_err().to_string(), "8:8", &["protects nothing"]);
}

#[test]
fn items_must_be_told_apart_and_say_where_they_are() {
    let files = "- files: { paths: [/etc/keystone] }";
    assert_says(
        &wrong(files, "- files: { paths: [/a/keys] }\n  - files: { paths: [/b/keys] }"),
        "11:5",
        &["a second item called files/keys; the first is on line 10; tell them apart with `name:`"],
    );
    assert_says(&wrong(files, "- files: { paths: [] }"), "10:5", &["no files are named"]);
    assert_says(
        &wrong(files, "- files: { paths: [/a], name: a/b }"),
        "10:5",
        &["item name \"a/b\" is not valid"],
    );
    assert_says(&wrong(files, "- cinder: {}"), "10:5", &["add `backend:`, `path:` or `rbd:`"]);
    assert_says(&wrong(files, "- volume: { path: /a, block-size: 5KiB }"), "10:5", &["power of two"]);
    assert_says(&wrong("socket: /run/mysqld/mysqld.sock", "log: continuous"), "9:5", &["no address"]);
    assert_says(&wrong("mysqld.sock }", "mysqld.sock, host: db }"), "9:5", &["two addresses"]);
    assert_says(&wrong("mysqld.sock }", "mysqld.sock, port: 3306 }"), "9:5", &["a socket has no port"]);
    assert_says(&wrong(files, "- glance: {}"), "10:5", &["add `store:`, `rbd:` or `api: true`"]);
    assert_says(&wrong(files, "- glance: { store: /g, api: true }"), "10:5", &["more than one place"]);
    let twice = "- glance: { api: true, checksums: { sqlite: /g.db } }";
    assert_says(&wrong(files, twice), "10:5", &["remove `checksums:`"]);
    // The same name for two kinds is fine.
    Policy::parse("p.yaml", &GOOD.replace(files, "- volume: { path: /srv/main }\n  - glance: { store: /g }"))
        .unwrap();
}

#[test]
fn the_keys_of_encrypted_volumes_are_items_of_the_same_policy() {
    let files = "- files: { paths: [/etc/keystone] }";
    let keys = |keys: &str| format!("{files}\n  - cinder: {{ path: /c, encryption-keys: [{keys}] }}");
    assert_says(
        &wrong(files, &keys("files/keystnoe")),
        "11:5",
        &["no item of this policy", "files/keystone"],
    );
    assert_says(&wrong(files, &keys("cinder/main")), "11:5", &["keys lie in no volumes"]);
    Policy::parse("p.yaml", &GOOD.replace(files, &keys("files/keystone"))).unwrap();
}

#[test]
fn a_secret_in_a_policy_is_refused_and_not_repeated() {
    for to in ["mysqld.sock, password: hunter2 }", "mysqld.sock, backup-args: [--password=hunter2] }"] {
        let error = Policy::parse("p.yaml", &GOOD.replace("mysqld.sock }", to)).unwrap_err();
        assert_eq!(error.line, 9, "{error}");
        assert!(error.to_string().contains("credential:NAME"), "{error}");
        assert!(to.contains("args") || !error.to_string().contains("hunter2"), "{error}");
    }
    let text = GOOD.replace("mysqld.sock }", "mysqld.sock, password: \"${env:DB_PASSWORD}\" }");
    let policy = Policy::parse("p.yaml", &text).unwrap();
    assert!(format!("{policy:?}").contains("DB_PASSWORD"));
}

#[test]
fn targets_that_the_schedule_cannot_meet_are_warned_of() {
    let warnings =
        |from: &str, to: &str| Policy::parse("p.yaml", &GOOD.replace(from, to)).unwrap().warnings().to_vec();
    assert_eq!(warnings("", ""), [] as [&str; 0]);
    assert_eq!(
        warnings("*/15 * * * *", "0 8-18 * * 1-5"),
        [
            "p.yaml:6:6: the schedule pauses for up to 2d14h, so an RPO of 20m will be missed by mariadb/main, files/keystone"
        ]
    );
    // A database whose log is shipped does not wait for the schedule.
    assert!(warnings("rpo: 20m", "rpo: 1m")[0].contains("mariadb/main, files/keystone"));
    let text = GOOD.replace("rpo: 20m", "rpo: 1m").replace("sock }", "sock, log: continuous }");
    assert!(Policy::parse("p.yaml", &text).unwrap().warnings()[0].ends_with("missed by files/keystone"));
    assert!(warnings("*/15 * * * *", "*/90 * * * *")[0].contains("\"*/90\" is longer than its range"));
    assert!(
        warnings("rto: 1h", "drill: { schedule: \"@daily\", level: data }")[0]
            .contains("level application is promised")
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Policy::load("/nonexistent/p.yaml".as_ref()).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/p.yaml: cannot be read: "), "{error}");
}

#[test]
fn the_schema_knows_every_key_and_refuses_others() {
    let schema = Policy::json_schema();
    assert_eq!(schema["additionalProperties"], false);
    for key in
        ["group", "schedule", "items", "retention", "bandwidth", "hooks", "drill", "alerts", "block-size"]
    {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
    let text = schema.to_string();
    for key in ["mariadb", "sqlite", "glance", "cinder", "files", "volume", "before-capture", "backup-args"] {
        assert!(text.contains(&format!("\"{key}\"")), "{key}");
    }
}

#[test]
fn the_cache_and_the_compression_have_defaults_and_may_be_set() {
    let text = |more: &str| {
        format!(
            "group: g\nsite: north\nto: [south]\nlevel: data\nschedule: '@daily'\nrpo: 2d\nitems:\n  - volume: {{ path: /x }}\n{more}"
        )
    };
    let policy = |more: &str| Policy::parse("p.yaml", &text(more));
    let default = policy("").unwrap();
    assert_eq!((default.cache.0, default.compression.range()), (4 << 30, (1, 9)));
    let set = policy("cache: 0\ncompression: 3\n").unwrap();
    assert_eq!((set.cache.0, set.compression.range()), (0, (3, 3)));
    assert_eq!(policy("compression: auto\n").unwrap().compression.range(), (1, 9));
    let wrong = policy("compression: fast\n").unwrap_err().to_string();
    assert!(wrong.contains("p.yaml:9:14") && wrong.contains("1 (fast) to 19"), "{wrong}");
}

#[test]
fn only_qcow2_images_are_read_through_the_process_that_has_them_open() {
    let files = "files: { paths: [/etc/keystone] }";
    for item in ["volume: { path: /v", "cinder: { path: /v"] {
        let open = format!("{item}, qmp: {{ socket: /run/q }} }}");
        assert_says(&wrong(files, &open), "10:5", &["only qcow2", "format: qcow2"]);
        let good = GOOD.replace(
            files,
            &format!("{item}, format: qcow2, qmp: {{ socket: /run/q, scratch-size: 2GiB }} }}"),
        );
        let policy = Policy::parse("p.yaml", &(good + "keep-versions: 5GiB\n")).unwrap();
        assert_eq!(policy.keep_versions, Some(ByteSize(5 << 30)));
    }
}

/// A policy of these entries.
fn of_items(items: &str) -> Result<Policy, String> {
    let text = format!(
        "group: g\nsite: north\nto: [south]\nlevel: data\nschedule: '@hourly'\nrpo: 1h\nitems:\n{items}"
    );
    Policy::parse("p.yaml", &text).map_err(|error| error.to_string())
}

#[test]
fn the_host_of_the_logged_databases_coordinates_else_the_first_that_is_named() {
    let database = "  - mariadb: { socket: /s, log: continuous, on: ctl1 }\n";
    let share = "  - cinder: { path: /srv/cinder, on: stor1 }\n";
    let files = "  - files: { paths: [/etc/keystone] }\n";
    let of = |items: &str| of_items(items).unwrap().coordinator().map(str::to_owned);
    assert_eq!(of(files), None);
    assert_eq!(of(&format!("{files}{share}")).as_deref(), Some("stor1"));
    assert_eq!(of(&format!("{share}{files}{database}")).as_deref(), Some("ctl1"));
    assert_eq!(of(&format!("{share}{database}")).as_deref(), Some("ctl1"));
}

#[test]
fn a_log_is_shipped_by_one_agent_out_of_its_own_host() {
    let share = "  - cinder: { path: /srv/cinder, on: stor1 }\n";
    let nowhere = of_items(&format!("{share}  - mariadb: {{ socket: /s, log: continuous }}\n")).unwrap_err();
    assert_says(
        &nowhere,
        "9:5",
        &["mariadb/main ships its log", "say `on: HOST` for it", "cinder/main says `on: stor1`"],
    );
    let two = "  - mariadb: { socket: /s, log: continuous, on: ctl1 }\n  - mariadb: { name: two, socket: /t, log: continuous, on: ctl2 }\n";
    let two = of_items(two).unwrap_err();
    assert_says(
        &two,
        "9:5",
        &["mariadb/two ships its log on host ctl2, and mariadb/main on ctl1", "a group of its own"],
    );
}
