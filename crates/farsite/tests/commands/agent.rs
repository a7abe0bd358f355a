//! The service: it replicates by its schedule, reloads, and drains when it is asked to end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::World;

struct Agent(Child);

impl Agent {
    fn start(world: &World) -> Self {
        Self::start_at(world, "north")
    }
    fn start_at(world: &World, site: &str) -> Self {
        let mut command = crate::common::program(world.path());
        command.arg("--config").arg(world.at(&format!("{site}/farsite.yaml"))).arg("agent");
        let log = std::fs::File::create(world.at("agent.log")).unwrap();
        Self(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
    fn ends(&mut self) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }
}
impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn wait_for(what: &str, world: &World, mut is_there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(
            begun.elapsed() < Duration::from_mins(1),
            "no {what}: {}",
            std::fs::read_to_string(world.at("agent.log")).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn points(world: &World) -> usize {
    world.south(&["points", "list", "--json"]).expect(0).json().as_array().unwrap().len()
}

fn get(port: u16, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let _ =
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn the_agent_replicates_serves_its_dashboard_and_ends_when_asked() {
    let world = World::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    world.edit("north/farsite.yaml", |text| format!("{text}web: 127.0.0.1:{port}\n"));
    world.edit("north/policies/cloud.yaml", |text| text.replace("'*/15 * * * *'", "'*/1 * * * * *'"));
    let mut agent = Agent::start(&world);
    wait_for("second point", &world, || points(&world) >= 2);
    wait_for("metrics", &world, || get(port, "/metrics").contains("farsite_exposure_seconds{"));
    assert!(get(port, "/api/status").contains("\"group\":\"cloud\""));
    assert!(get(port, "/").contains("cloud"));
    agent.signal("TERM");
    assert_eq!(agent.ends(), Some(0));
    world.south(&["points", "verify", "latest"]).expect(0);
}

#[test]
fn a_typing_error_in_a_reload_does_not_end_protection() {
    let world = World::new();
    world.edit("north/policies/cloud.yaml", |text| text.replace("'*/15 * * * *'", "'*/1 * * * * *'"));
    let mut agent = Agent::start(&world);
    wait_for("first point", &world, || points(&world) >= 1);
    let good = std::fs::read_to_string(world.at("north/policies/cloud.yaml")).unwrap();
    std::fs::write(world.at("north/policies/cloud.yaml"), good.replace("rpo:", "rop:")).unwrap();
    agent.signal("HUP");
    let log = || std::fs::read_to_string(world.at("agent.log")).unwrap_or_default();
    wait_for("complaint", &world, || log().contains("was not reloaded"));
    let now = points(&world);
    wait_for("next point", &world, || points(&world) > now);
    std::fs::write(world.at("north/policies/cloud.yaml"), good).unwrap();
    agent.signal("HUP");
    wait_for("reload", &world, || log().contains("configuration reloaded"));
    agent.signal("INT");
    assert_eq!(agent.ends(), Some(0));
}

#[test]
fn the_standbys_agent_hydrates_and_a_failover_copies_nothing_but_what_differs() {
    let world = World::new();
    world.replicate();
    let mut agent = Agent::start_at(&world, "south");
    let hydrated = |name: &str| std::fs::read(world.at(&format!("restored/{name}"))).unwrap_or_default();
    let volume = "volumes/.farsite-hydrated/volume-1";
    let image = format!("images/.farsite-hydrated/{}", crate::common::IMAGE);
    wait_for("hydrated volume", &world, || hydrated(volume) == vec![9; 500_000]);
    wait_for("hydrated image", &world, || hydrated(&image) == vec![7; 300_000]);
    assert!(!world.at("restored/volumes/volume-1").exists(), "the place is the promotion's");
    // The next point, by what differs.
    let mut bytes = vec![9; 500_000];
    bytes[100_000..100_100].fill(1);
    std::fs::write(world.at("cloud/volumes/volume-1"), &bytes).unwrap();
    world.replicate();
    wait_for("next point", &world, || hydrated(volume) == bytes);
    let log = || std::fs::read_to_string(world.at("agent.log")).unwrap_or_default();
    wait_for("word of it", &world, || log().contains("ByMaps"));
    let plan =
        world.south(&["failover", "--site", "north", "--assume-site-lost", "--reason", "fire", "--dry-run"]);
    plan.expect(0).says(&["hydrated to this very point"]);
    world
        .south(&["failover", "--site", "north", "--assume-site-lost", "--reason", "fire", "--yes"])
        .expect(0);
    assert_eq!(std::fs::read(world.at("restored/volumes/volume-1")).unwrap(), bytes);
    assert_eq!(
        std::fs::read(world.at("restored/images").join(crate::common::IMAGE)).unwrap(),
        vec![7; 300_000]
    );
    assert!(!world.at(&format!("restored/{volume}")).exists());
    let shown = world.south(&["promotion", "report", "--json"]).expect(0);
    shown.says(&["1 were hydrated"]);
    agent.signal("TERM");
    assert_eq!(agent.ends(), Some(0));
    // South is primary now: nothing more is hydrated over what its services write.
    assert!(!world.at(&format!("restored/{volume}")).exists());
}
