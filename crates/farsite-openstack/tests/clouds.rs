//! From a clouds.yaml on disk to a Keystone that answers or does not.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use farsite_openstack::{Cloud, Clouds, CloudsError, ProbeError, probe};
use tempfile::TempDir;
use tokio::net::TcpListener;

const TWO_SITES: &str = r#"
# as Kolla, DevStack and people write it
cache: { expiration: { server: 5 } }
clouds:
  north:
    auth: &auth
      auth_url: https://keystone.north.example.org:5000/v3
      username: farsite
      password: "hunter2"
      project_name: dr
      user_domain_name: Default
    region_name: RegionOne
    interface: internal
    identity_api_version: 3
    verify: false
  south:
    auth:
      <<: *auth
      auth_url: https://admin:hunter2@keystone.south.example.org/v3
    regions: [ { name: RegionTwo, values: { networks: [] } } ]
  wide:
    auth: { auth_url: "http://[::1]:5000", token: hunter2 }
    regions: [One, Two]
  vendor: { profile: rackspace, auth: { password: hunter2 } }
  broken: { auth: { auth_url: "hunter2", password: hunter2 } }
"#;

fn in_folder(text: &str) -> (TempDir, Result<Clouds, CloudsError>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clouds.yaml");
    std::fs::write(&file, text).unwrap();
    let clouds = Clouds::read(&file);
    (folder, clouds)
}

fn two_sites() -> Clouds {
    in_folder(TWO_SITES).1.unwrap()
}

#[test]
fn a_cloud_is_found_with_its_keystone_region_and_project() {
    let clouds = two_sites();
    assert_eq!(clouds.names().collect::<Vec<_>>(), ["broken", "north", "south", "vendor", "wide"]);
    let north = clouds.find("north").unwrap();
    assert_eq!(north.auth_url.to_string(), "https://keystone.north.example.org:5000/v3");
    assert_eq!((north.region.as_deref(), north.project.as_deref()), (Some("RegionOne"), Some("dr")));
    let south = clouds.find("south").unwrap();
    assert_eq!((south.region.as_deref(), south.project.as_deref()), (Some("RegionTwo"), Some("dr")));
    let wide = clouds.find("wide").unwrap();
    assert_eq!((wide.region, wide.regions), (None, vec!["One".to_owned(), "Two".to_owned()]));
}

#[test]
fn no_secret_of_the_file_can_be_shown() {
    let clouds = two_sites();
    let mut shown = format!("{clouds:?}");
    for name in clouds.names() {
        write!(shown, "{:?} ", clouds.find(name)).unwrap();
        if let Err(error) = clouds.find(name) {
            shown += &error.to_string();
        }
    }
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_file_that_does_not_parse_is_placed_and_not_quoted() {
    for (text, line) in [
        ("clouds:\n  north:\n    auth: hunter2\n", 3),
        ("clouds:\n  north:\n    auth: { password: hunter2\n", 0),
        ("clouds:\n  north:\n    auth: { project_name: [hunter2] }\n", 3),
        ("clouds:\n  north: {}\n  north: { auth: { password: hunter2 } }\n", 3),
        ("hunter2", 1),
    ] {
        let error = in_folder(text).1.unwrap_err();
        let CloudsError::Invalid { line: found, .. } = &error else { panic!("{error:?}") };
        assert!(line == 0 || *found == line, "{error:?} of {text}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}

#[test]
fn a_mistyped_cloud_gets_the_nearest_ones() {
    let error = two_sites().find("nroth").unwrap_err().to_string();
    assert!(error.contains("no cloud \"nroth\"; did you mean north"), "{error}");
    let error = two_sites().find("zzz").unwrap_err().to_string();
    assert!(error.contains("it has broken, north, south"), "{error}");
}

#[test]
fn a_cloud_without_a_usable_auth_url_says_why() {
    let clouds = two_sites();
    let error = clouds.find("vendor").unwrap_err().to_string();
    assert!(error.contains("no `auth: { auth_url: … }`, only a `profile`"), "{error}");
    let error = clouds.find("broken").unwrap_err().to_string();
    assert!(error.contains("\"broken\"") && error.contains("http://"), "{error}");
}

#[test]
fn the_first_file_of_the_usual_places_is_read() {
    let root = tempfile::tempdir().unwrap();
    let place = |folder: &str| {
        let folder = root.path().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("clouds.yaml"), "clouds: {}\n").unwrap();
        folder.join("clouds.yaml")
    };
    let home = root.path().join("home").display().to_string();
    let (working, system) = (root.path().join("working"), root.path().join("etc"));
    let load = |environment: &[(&str, &str)]| {
        let of = |name: &str| {
            let (_, value) = environment.iter().find(|(known, _)| *known == name)?;
            Some((*value).to_owned())
        };
        Clouds::load_with(&of, &working, &system)
    };
    let found = |environment: &[(&str, &str)]| load(environment).unwrap().file().to_owned();
    let home_only = [("HOME", home.as_str())];

    let error = load(&home_only).unwrap_err().to_string();
    for searched in ["working/clouds.yaml", "home/.config/openstack/clouds.yaml", "etc/clouds.yaml"] {
        assert!(error.contains(searched), "{error}");
    }
    let in_system = place("etc");
    assert_eq!(found(&home_only), in_system);
    let in_home = place("home/.config/openstack");
    assert_eq!(found(&home_only), in_home);
    let in_working = place("working");
    assert_eq!(found(&home_only), in_working);
    let named = place("named").display().to_string();
    assert_eq!(found(&[("OS_CLIENT_CONFIG_FILE", &named)]), Path::new(&named));

    let error = load(&[("OS_CLIENT_CONFIG_FILE", "/none/clouds.yaml")]).unwrap_err();
    assert!(matches!(error, CloudsError::Unreadable { .. }), "{error}");
}

fn cloud_at(auth_url: &str) -> Cloud {
    in_folder(&format!("clouds: {{ south: {{ auth: {{ auth_url: \"{auth_url}\" }} }} }}\n"))
        .1
        .unwrap()
        .find("south")
        .unwrap()
}

const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_keystone_that_listens_is_reached() {
    let keystone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = keystone.local_addr().unwrap();
    let reached = probe(&cloud_at(&format!("http://{address}/v3")), LIMIT).await.unwrap();
    assert_eq!(reached.address, address);
    // localhost may have an IPv6 address too, at which nobody listens.
    let reached = probe(&cloud_at(&format!("http://localhost:{}/v3", address.port())), LIMIT).await.unwrap();
    assert_eq!(reached.address, address);
}

#[tokio::test]
async fn a_keystone_that_refuses_is_named_at_once() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = probe(&cloud_at(&format!("http://{free}/v3")), LIMIT).await.unwrap_err();
    assert!(matches!(error, ProbeError::Connect { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("\"south\"") && text.contains(&free.port().to_string()), "{text}");
}

#[tokio::test]
async fn a_probe_ends_at_its_limit() {
    // A listener whose queue is full: the kernel drops further connection requests, as a firewall does.
    let full = tokio::net::TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = full.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        waiting.push(stream);
        assert!(waiting.len() < 64, "the queue never fills");
    }
    let started = Instant::now();
    let error = probe(&cloud_at(&format!("http://{address}")), Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, ProbeError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("within 300 ms"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn secrets_are_read_out_of_secure_yaml_and_profiles_out_of_clouds_public_yaml() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "clouds.yaml",
        "clouds: { north: { profile: vendor, region_name: One, auth: { username: u, project_name: dr } } }\n",
    );
    write("secure.yaml", "clouds: { north: { auth: { password: 0123 } } }\n");
    write(
        "clouds-public.yaml",
        "public-clouds: { vendor: { interface: internalURL, auth: { auth_url: 'https://vendor.example.org' } } }\n",
    );
    let clouds = Clouds::read(&folder.path().join("clouds.yaml")).unwrap();
    let cloud = clouds.find("north").unwrap();
    assert_eq!(cloud.auth_url.host(), "vendor.example.org");
    assert_eq!((cloud.region.as_deref(), cloud.interface.as_str()), (Some("One"), "internal"));
    assert!(clouds.credentials("north").is_ok());
    // What opens it is read anew each time.
    write("secure.yaml", "clouds: {}\n");
    let error = clouds.credentials("north").unwrap_err().to_string();
    assert!(error.contains("no `password`"), "{error}");
}

#[test]
fn variables_describe_the_cloud_envvars_and_no_other() {
    let root = tempfile::tempdir().unwrap();
    let environment = |name: &str| {
        let value = match name {
            "OS_AUTH_URL" => "http://keystone:5000/v3",
            "OS_USERNAME" => "farsite",
            "OS_PASSWORD" => "hunter2",
            "OS_PROJECT_NAME" => "dr",
            "OS_REGION_NAME" => "One",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let clouds = Clouds::load_with(&environment, root.path(), root.path()).unwrap();
    let cloud = clouds.find("envvars").unwrap();
    assert_eq!((cloud.region.as_deref(), cloud.project.as_deref()), (Some("One"), Some("dr")));
    let credentials = clouds.credentials_with("envvars", &environment).unwrap();
    assert!(!format!("{credentials:?} {clouds:?}").contains("hunter2"));
    assert!(clouds.find("north").is_err(), "one site's variables never stand for another site");
}
