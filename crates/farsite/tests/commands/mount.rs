//! One item of a point without a restore, and into an older copy: what the person on call types.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};

use crate::common::{World, program};
use serde_json::Value;

/// A mount that ends with the test.
struct Mount {
    child: Child,
    said: Value,
}

impl Mount {
    fn start(world: &World, args: &[&str]) -> Self {
        let mut child = program(world.path())
            .arg("--config")
            .arg(world.at("south/farsite.yaml"))
            .args(["--json", "mount"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, said: serde_json::from_str(&line).unwrap() }
    }
    fn uri(&self) -> &str {
        self.said["uri"].as_str().unwrap()
    }
    /// Asks it to end; its exit code, and what it logged.
    fn end(mut self, signal: &str) -> (i32, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let mut log = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut log).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), log)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client(name: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new("timeout")
        .args(["60", name])
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said.into_owned())
}

/// A volume with holes and data in it.
fn volume(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; 3_000_000];
    for (i, byte) in bytes[1_000_000..2_000_000].iter_mut().enumerate() {
        *byte = (i / 7 % 251) as u8 ^ seed;
    }
    bytes
}

fn write(world: &World, bytes: &[u8]) {
    std::fs::write(world.at("cloud/volumes/volume-1"), bytes).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_mins(1);
    let file = std::fs::File::options().write(true).open(world.at("cloud/volumes/volume-1")).unwrap();
    file.set_modified(old).unwrap();
}

#[test]
fn a_volume_is_read_over_nbd_without_a_restore() {
    let world = World::new();
    write(&world, &volume(1));
    let point = world.replicate();
    let mount = Mount::start(&world, &["latest", "volume-1", "--listen", "127.0.0.1:0"]);
    assert_eq!(mount.said["point"], point.as_str());
    assert_eq!(mount.said["size_bytes"], 3_000_000);
    let copied = world.at("copied");
    let (good, said) = client("nbdcopy", &[mount.uri(), copied.to_str().unwrap()]);
    assert!(good, "{said}");
    assert!(std::fs::read(&copied).unwrap() == volume(1));
    let (good, said) =
        client("qemu-img", &["compare", "-f", "raw", "-F", "raw", mount.uri(), copied.to_str().unwrap()]);
    assert!(good && said.contains("identical"), "{said}");
    let (_, map) = client("nbdinfo", &["--map", mount.uri()]);
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
    assert_eq!(mount.end("-INT").0, 0);

    let socket = world.at("nbd.sock");
    let mount = Mount::start(&world, &["latest", "volume-1", "--socket", socket.to_str().unwrap()]);
    let (good, said) = client("qemu-img", &["info", mount.uri()]);
    assert!(good && said.contains("virtual size: 2.86 MiB"), "{said}");
    assert_eq!(mount.end("-TERM").0, 0);
    assert!(!socket.exists());
    world.south(&["mount", "latest", "volume-1", "--listen", "0.0.0.0:0"]).expect(4).says(&["ssh"]);
    world.south(&["mount", "latest", "keystone"]).expect(2).says(&["folder of files"]);
}

#[test]
fn a_damaged_block_is_an_error_for_its_range_and_named_in_the_log() {
    let world = World::new();
    world.replicate();
    let before = world.store_files();
    write(&world, &volume(3));
    world.replicate();
    let pack = world
        .store_files()
        .into_iter()
        .find(|file| !before.contains(file) && file.to_str().unwrap().contains("packs/"))
        .unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[80] ^= 1;
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, bytes).unwrap();
    let mount = Mount::start(&world, &["latest", "volume-1", "--listen", "127.0.0.1:0"]);
    let (good, said) = client("nbdcopy", &[mount.uri(), "null:"]);
    assert!(!good && said.contains("Input/output error"), "{said}");
    let (good, said) = client("qemu-io", &["-r", "-f", "raw", "-c", "read 0 65536", mount.uri()]);
    assert!(good && said.contains("read 65536/65536"), "what is not damaged is read: {said}");
    let (code, log) = mount.end("-TERM");
    assert_eq!(code, 0);
    assert!(log.contains(pack.file_name().unwrap().to_str().unwrap()), "{log}");
}

#[test]
fn an_older_copy_is_brought_to_a_point_by_writing_only_what_differs() {
    let world = World::new();
    write(&world, &volume(1));
    let first = world.replicate();
    let to = world.at("disk.raw");
    let to = to.to_str().unwrap();
    world.south(&["restore", "latest", "volume-1", "--to", to]).expect(0);
    let mut second = volume(1);
    second[1_500_000..1_500_100].fill(0xAA);
    second[1_200_000..1_340_000].fill(0);
    second.truncate(2_900_000);
    write(&world, &second);
    world.replicate();
    let args = ["restore", "latest", "volume-1", "--to", to, "--in-place", "--json"];
    let by_maps = world.south(&[&args[..], &["--holds", &first]].concat()).expect(0).json();
    assert!(std::fs::read(to).unwrap() == second);
    assert_eq!(by_maps["compared"], "maps");
    assert!(by_maps["written_bytes"].as_u64().unwrap() <= 5 * 65_536, "{by_maps}");
    // Back to the first one, and the same again: nothing is left to do.
    let back = ["restore", &first, "volume-1", "--to", to, "--in-place", "--json"];
    let by_contents = world.south(&back).expect(0).json();
    assert!(std::fs::read(to).unwrap() == volume(1));
    assert_eq!(by_contents["compared"], "contents");
    assert_eq!(world.south(&back).expect(0).json()["written_bytes"], 0);
    // An attempt that was cut off left its note: then nobody's word for what stands there is taken.
    let file = std::fs::File::options().write(true).open(to).unwrap();
    file.write_all_at(&[1; 100], 1_100_000).unwrap();
    std::fs::write(world.at(".disk.raw.farsite-unfinished"), "{}").unwrap();
    let ended = world.south(&[&args[..], &["--holds", &first]].concat()).expect(0);
    ended.says(&["compared by reading all of it"]);
    assert!(std::fs::read(to).unwrap() == second);
    assert!(!world.at(".disk.raw.farsite-unfinished").exists());
    world.south(&["restore", "latest", "volume-1", "--to", "nowhere", "--in-place"]).expect(2);
    world.south(&["restore", "latest", "keystone", "--to", to, "--in-place"]).expect(2);
}

#[test]
fn a_restore_that_was_killed_is_gone_on_with() {
    let world = World::new();
    write(&world, &volume(1));
    world.replicate();
    let to = world.at("disk.raw");
    // What a killed restore leaves: some of it right, some wrong.
    let mut partial = volume(1);
    partial[1_900_000..].fill(7);
    std::fs::write(world.at(".disk.raw.farsite-partial"), partial).unwrap();
    let args = ["restore", "latest", "volume-1", "--to", to.to_str().unwrap(), "--json"];
    let said = world.south(&args).expect(0).json();
    assert!(std::fs::read(&to).unwrap() == volume(1));
    assert!(said["unchanged_bytes"].as_u64().unwrap() > 800_000, "{said}");
    assert!(!world.at(".disk.raw.farsite-partial").exists());
}

#[test]
fn what_is_mounted_is_kept_from_collection_until_it_ends() {
    let world = World::new();
    for site in ["north", "south"] {
        let keep_one = "rto: 10m\nretention: { last: 1, keep: none }\n";
        world.edit(&format!("{site}/policies/cloud.yaml"), |text| text.replace("rto: 10m\n", keep_one));
    }
    write(&world, &volume(1));
    let first = world.replicate();
    let mount = Mount::start(&world, &["latest", "volume-1", "--listen", "127.0.0.1:0", "--cache", "1MiB"]);
    for seed in 2..4 {
        // Nothing that the first point needs is needed by the others.
        write(&world, &volume(seed));
        world.north(&["replicate", "--full"]).expect(0);
    }
    let collected = || world.south(&["store", "gc", "--yes", "--json"]).expect(0).json();
    let of_group = collected()["groups"]["cloud"].clone();
    assert_eq!(of_group["released"].as_array().unwrap().len(), 1, "{of_group}");
    let copied = world.at("copied");
    let (good, said) = client("nbdcopy", &[mount.uri(), copied.to_str().unwrap()]);
    assert!(good, "{said}");
    assert!(std::fs::read(&copied).unwrap() == volume(1));
    assert_eq!(mount.end("-TERM").0, 0);
    let of_group = collected()["groups"]["cloud"].clone();
    assert_eq!(of_group["released"], serde_json::json!([first]), "{of_group}");
    world.south(&["points", "verify", "--all", "cloud"]).expect(0);
}
