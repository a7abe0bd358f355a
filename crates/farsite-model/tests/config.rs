//! farsite.yaml: the example of the documentation, where relative paths start, and what is refused.

use std::path::{Path, PathBuf};

use farsite_model::SiteName;
use farsite_model::config::{Config, Identity};
use farsite_model::secret::SecretRef;

const GOOD: &str = "\
site: north
sites:
  north: { cloud: north, region: RegionOne }
  south: { cloud: south, region: RegionOne }
stores:
  south:
    url: s3://dr-replica/north?endpoint=https://s3.south.example.org&region=south
    recipients: [age1qqq]
    identity: /etc/farsite/south.identity
    access-key: credential:s3-access
    secret-key: ${env:S3_SECRET}
state: /var/lib/farsite
web: 127.0.0.1:7400
";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("f.yaml", text, Path::new("/etc/farsite")).map_err(|error| error.to_string())
}

fn wrong(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    parse(&GOOD.replace(from, to)).map(|_| ()).unwrap_err()
}

#[test]
fn the_documented_example_is_read() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.sites[&config.site].cloud.as_deref(), Some("north"));
    let south = SiteName::new("south").unwrap();
    let store = config.store(&south).unwrap();
    assert_eq!(store.identity, Some(Identity::File("/etc/farsite/south.identity".into())));
    assert_eq!(store.access_key, Some(SecretRef::Credential("s3-access".into())));
    assert_eq!(store.secret_key, Some(SecretRef::Env("S3_SECRET".into())));
    assert!(!store.single_recipient);
    assert_eq!(config.web.as_deref(), Some("127.0.0.1:7400"));
}

#[test]
fn relative_paths_start_at_the_file() {
    let config = parse(
        "site: south\nsites: { south: {} }\nstate: ./state\nstores: { south: { url: ./store, identity: south.identity } }\n\
         keys: { operator: keys/operator, block-secret: /abs }\nrunbooks: books\n\
         places: { cloud: { mariadb: { datadir: db, socket: db.sock, port: 3307 }, glance: { path: images } } }\n",
    )
    .unwrap();
    assert_eq!(config.state_dir(), PathBuf::from("/etc/farsite/state"));
    let store = config.stores.values().next().unwrap();
    assert_eq!(store.url, "/etc/farsite/store");
    assert_eq!(store.identity, Some(Identity::File("/etc/farsite/south.identity".into())));
    assert_eq!(config.keys.operator, Some("/etc/farsite/keys/operator".into()));
    assert_eq!(config.keys.block_secret, Some("/abs".into()));
    assert_eq!(config.runbooks_dir(), PathBuf::from("/etc/farsite/books"));
    let places = config.places.values().next().unwrap();
    assert_eq!(places.mariadb.as_ref().unwrap().datadir, PathBuf::from("/etc/farsite/db"));
    assert_eq!(places.glance.as_ref().unwrap().path, Some(PathBuf::from("/etc/farsite/images")));
}

#[test]
fn an_identity_is_a_path_a_reference_or_a_command_but_never_the_identity() {
    let identity = |text: &str| {
        let config =
            parse(&GOOD.replace("identity: /etc/farsite/south.identity", &format!("identity: {text}")))?;
        Ok::<_, String>(config.stores.into_values().next().unwrap().identity.unwrap())
    };
    assert_eq!(
        identity("credential:south").unwrap(),
        Identity::Secret(SecretRef::Credential("south".into()))
    );
    assert_eq!(
        identity("{ command: [pass, show, south] }").unwrap(),
        Identity::Command { command: ["pass", "show", "south"].map(String::from).to_vec() }
    );
    for bad in ["AGE-SECRET-KEY-1HUNTER2", "{ command: [] }", "{ comand: [pass] }", "file:relative"] {
        let message = identity(bad).unwrap_err();
        assert!(message.starts_with("f.yaml:9:"), "{message}");
        assert!(!message.contains("HUNTER2"), "{message}");
    }
}

#[test]
fn an_unknown_site_gets_the_nearest_one_and_its_place() {
    let message = wrong("site: north\n", "site: nroth\n");
    assert!(message.starts_with("f.yaml:1:7: no site nroth is known; did you mean north?"), "{message}");
    let message = wrong("stores:\n  south:", "stores:\n  suoth:");
    assert!(
        message.starts_with("f.yaml:7:5: a store at suoth, but no site suoth is known; did you mean south?"),
        "{message}"
    );
    let config = parse(GOOD).unwrap();
    let message = config.store(&SiteName::new("sout").unwrap()).unwrap_err();
    assert!(message.contains("did you mean south?"), "{message}");
}

#[test]
fn unknown_keys_wrong_types_and_bad_names_have_their_place() {
    let says = |message: String, start: &str| assert!(message.starts_with(start), "{message}");
    says(wrong("state:", "stat:"), "f.yaml:12:1: unknown key \"stat\"; did you mean state");
    says(wrong("    url:", "    ulr:"), "f.yaml:7:5: unknown key \"ulr\"; did you mean url");
    says(wrong("[age1qqq]", "age1qqq"), "f.yaml:8:17: expected ");
    says(wrong("  north: {", "  no/rth: {"), "f.yaml:3:3: ");
    says(
        wrong("site: north\n", "site: north\nsite: north\n"),
        "f.yaml:2:1: the key \"site\" stands here twice",
    );
}

#[test]
fn a_secret_in_the_configuration_is_refused_and_not_repeated() {
    for (from, to) in [
        ("${env:S3_SECRET}", "hunter2"),
        ("s3://dr-replica/north?", "s3://dr-replica/north?secret_key=hunter2&"),
        ("https://s3.south", "https://me:hunter2@s3.south"),
        ("[age1qqq]", "[AGE-SECRET-KEY-hunter2]"),
    ] {
        let message = wrong(from, to);
        assert!(!message.contains("hunter2"), "{message}");
    }
    // An error elsewhere on the line of a secret does not quote it either.
    let message = wrong("web: 127.0.0.1:7400", "webb: { secret-key: hunter2 }");
    assert!(message.contains("unknown key \"webb\"") && !message.contains("hunter2"), "{message}");
}

#[test]
fn a_configuration_is_loaded_with_the_policies_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("farsite.yaml");
    std::fs::write(&file, "site: north\nsites: { north: {}, south: {} }\nstate: state\n").unwrap();
    std::fs::create_dir(folder.path().join("policies")).unwrap();
    let policy = "group: G\nsite: north\nto: [south]\nlevel: data\nschedule: '@daily'\nrpo: 2d\nitems: [{ volume: { path: /v } }]\n";
    let write = |name: &str, group: &str| {
        std::fs::write(folder.path().join("policies").join(name), policy.replace('G', group)).unwrap();
    };
    write("b.yaml", "b");
    write("a.yaml", "a");
    write("README.md", "not: a policy");
    let config = Config::discover(Some(&file)).unwrap();
    let groups: Vec<String> =
        config.load_policies().unwrap().iter().map(|(_, p)| p.group.to_string()).collect();
    assert_eq!(groups, ["a", "b"]);
    write("c.yaml", "a");
    let message = config.load_policies().unwrap_err().to_string();
    assert!(message.contains("c.yaml: group a is the one of") && message.contains("a.yaml"), "{message}");
    let message = Config::load(&folder.path().join("none.yaml")).unwrap_err().to_string();
    assert!(message.contains("cannot be read"), "{message}");
}

#[test]
fn a_folder_of_policies_that_is_named_has_to_be_there() {
    let config = parse(&format!("{GOOD}policies: /nonexistent\n")).unwrap();
    let message = config.load_policies().unwrap_err().to_string();
    assert!(message.starts_with("/nonexistent: the policies cannot be listed"), "{message}");
}

#[test]
fn the_schema_knows_every_key() {
    let schema = Config::json_schema().to_value();
    for key in ["site", "sites", "stores", "state", "web", "policies", "runbooks", "keys", "places"] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
}

#[test]
fn a_storage_place_is_a_folder_or_a_pool_and_never_both() {
    let text = |glance: &str| {
        format!("site: south\nsites: {{ south: {{}} }}\nplaces:\n  cloud:\n    glance: {glance}\n")
    };
    let config = parse(&text("{ rbd: { pool: images, conf: ceph.conf } }")).unwrap();
    let place = config.places.values().next().unwrap().glance.clone().unwrap();
    assert_eq!(place.rbd.unwrap().conf, Some("/etc/farsite/ceph.conf".into()));
    for (glance, says) in [
        ("{ path: ./images, rbd: { pool: images } }", "two places"),
        ("{}", "add `path:` or `rbd:`"),
        ("{ api: true }", "Glance takes data only for an image that is queued"),
    ] {
        let error = parse(&text(glance)).unwrap_err();
        assert!(error.starts_with("f.yaml:5:13") && error.contains(says), "{error}");
    }
}

#[test]
fn another_host_is_reached_by_a_command() {
    let of = |host: &str| {
        let text = format!("site: north\nsites: {{ north: {} }}\nhosts:\n  stor1: {host}\n", "{}");
        Config::parse("c.yaml", &text, Path::new("/")).map_err(|error| error.to_string())
    };
    let config = of("{ command: [ssh, stor1, farsite, serve-sources] }").unwrap();
    assert_eq!(config.hosts["stor1"].command[1], "stor1");
    assert_eq!(config.hosts["stor1"].patience(), std::time::Duration::from_secs(30));
    let nothing = of("{ command: [] }").unwrap_err();
    assert!(nothing.starts_with("c.yaml:4:10: host stor1: no command"), "{nothing}");
    assert!(of("{ command: [ssh], patience: 10ms }").unwrap_err().contains("given up too early"));
    assert!(of("{ comand: [ssh] }").unwrap_err().contains("comand"));
}
