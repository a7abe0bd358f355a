//! Volumes that are qcow2 images and that a process of QEMU has open: they are read through it, at one instant, while their
//! guest writes on; nothing that goes wrong reaches the guest, and nothing stays behind.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use farsite_scenarios::images::{BLOCK, Images, MIB, io, path, tool};
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::said;
use serde_json::{Value, json};

const SHARED: &str = "socket: NORTH/qmp, nbd: NORTH/guest";
const OWN: &str = "socket: NORTH/qmp";
const LIMIT: Duration = Duration::from_secs(20);

/// A site whose policy tells of a folder of monitors.
async fn site(qmp: &str, more: &str) -> Images {
    let items = format!("  - cinder: {{ path: NORTH/volumes, format: qcow2, qmp: {{ {qmp} }}{more} }}\n");
    let images = Images::new(&items).await;
    fs::create_dir(images.sites.data("qmp")).unwrap();
    images.with_image()
}

/// A process of QEMU that has the image open, as a guest's has.
struct Host<'a> {
    images: &'a Images,
    child: Child,
}

impl<'a> Host<'a> {
    fn start(images: &'a Images) -> Self {
        let monitor = images.sites.data("qmp/host");
        let _ = fs::remove_file(&monitor);
        let child = Command::new("qemu-storage-daemon")
            .args(["--chardev", &format!("socket,id=m,path={},server=on,wait=off", path(&monitor))])
            .args(["--monitor", "chardev=m", "--blockdev"])
            .arg(format!("driver=file,node-name=file,filename={}", path(&images.image())))
            .args(["--blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut host = Self { images, child };
        let is_up = comes_true(LIMIT, || UnixStream::connect(&monitor).is_ok());
        assert!(is_up, "{:?}", host.child.try_wait());
        host
    }

    /// With an NBD server of its own, at which its guest writes.
    fn with_guest(images: &'a Images) -> Self {
        let host = Self::start(images);
        host.let_guest_in();
        host
    }

    fn let_guest_in(&self) {
        let addr = json!({ "type": "unix", "data": { "path": self.images.sites.data("guest") } });
        let _ = fs::remove_file(self.images.sites.data("guest"));
        let export =
            json!({ "type": "nbd", "id": "guest", "node-name": "disk", "name": "guest", "writable": true });
        self.ask(&[
            ("nbd-server-start", json!({ "addr": addr, "max-connections": 0 })),
            ("block-export-add", export),
        ]);
    }

    fn show_guest_out(&self) {
        self.ask(&[("block-export-del", json!({ "id": "guest", "mode": "hard" }))]);
        assert!(comes_true(LIMIT, || self.ask(&[("query-block-exports", json!({}))])[0] == json!([])));
        self.ask(&[("nbd-server-stop", json!({}))]);
    }

    /// What a guest does while its host runs.
    fn io(&self, commands: &[&str]) {
        io("raw", &guest(self.images), commands);
    }

    fn ask(&self, questions: &[(&str, Value)]) -> Vec<Value> {
        let monitor = UnixStream::connect(self.images.sites.data("qmp/host")).unwrap();
        monitor.set_read_timeout(Some(LIMIT)).unwrap();
        let mut answers = BufReader::new(&monitor).lines().map(|line| line.unwrap());
        let mut ask = |command: &str, arguments: &Value| {
            let question = json!({ "execute": command, "arguments": arguments });
            writeln!(&monitor, "{question}").unwrap();
            loop {
                let answer: Value = serde_json::from_str(&answers.next().unwrap()).unwrap();
                if answer.get("event").is_none() && answer.get("QMP").is_none() {
                    return answer.get("return").cloned().unwrap_or_else(|| panic!("{question}: {answer}"));
                }
            }
        };
        ask("qmp_capabilities", &json!({}));
        questions.iter().map(|(command, arguments)| ask(command, arguments)).collect()
    }

    /// Names of bitmaps of ours, and of all else that stands in it and is not its own.
    fn holds(&self) -> (Vec<String>, Vec<String>) {
        let nothing = json!({});
        let said = self.ask(&[
            ("query-named-block-nodes", json!({ "flat": true })),
            ("query-jobs", nothing.clone()),
            ("query-block-exports", nothing),
        ]);
        let mut bitmaps = Vec::new();
        let mut rest = Vec::new();
        for (list, key) in said.iter().zip(["node-name", "id", "id"]) {
            for one in list.as_array().unwrap() {
                let name = one[key].as_str().unwrap().to_owned();
                let there = one["dirty-bitmaps"].as_array().into_iter().flatten();
                // Those of jobs have no names.
                bitmaps.extend(there.filter_map(|bitmap| Some(bitmap["name"].as_str()?.to_owned())));
                if !["disk", "file", "guest"].contains(&&*name) {
                    rest.push(name);
                }
            }
        }
        (bitmaps, rest)
    }

    /// A run that reads so many blocks, whose point holds what the guest sees, and that leaves one bitmap.
    #[track_caller]
    fn reads(&self, blocks: u64) -> Value {
        let report = self.images.replicate();
        assert_eq!(report["failed"], json!([]), "{report}");
        assert_eq!(report["read_bytes"], blocks * BLOCK, "{report}");
        self.assert_is_clean();
        report
    }

    #[track_caller]
    fn assert_is_clean(&self) {
        let (bitmaps, rest) = self.holds();
        assert_eq!((bitmaps.len(), rest), (1, Vec::new()), "{bitmaps:?}");
        assert_eq!(left_over(self.images), Vec::<PathBuf>::new());
    }

    /// As a guest that is shut down.
    fn stop(mut self) {
        self.ask(&[("quit", json!({}))]);
        assert!(self.child.wait().unwrap().success());
    }
}

/// As a host that crashes.
impl Drop for Host<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn guest(images: &Images) -> String {
    format!("nbd+unix:///guest?socket={}", path(&images.sites.data("guest")))
}

fn left_over(images: &Images) -> Vec<PathBuf> {
    let entries = fs::read_dir(images.sites.data("volumes")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".farsite-")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_image_is_read_through_its_process_and_only_what_its_bitmap_tells() {
    let images = site(SHARED, "").await;
    let host = Host::with_guest(&images);
    let check = said(&images.sites.farsite("north", &["check"]));
    assert!(check.contains("has open") && check.contains("crash consistent"), "{check}");
    let first = host.reads(33 * MIB / BLOCK);
    assert_eq!(first["weakest"], "crash", "{first}");
    images.assert_restores_as(&first, "raw", &guest(&images));
    host.io(&["write -P 33 5M 4k", "discard 2M 1M"]);
    let report = host.reads(1);
    assert!(report["shipped_bytes"].as_u64().unwrap() < 3_000, "{report}");
    images.assert_restores_as(&report, "raw", &guest(&images));

    // The same bitmaps tell when it is closed, and when it is open again.
    host.io(&["write -P 34 6M 4k"]);
    host.stop();
    images.reads(1);
    images.io(&["write -P 35 7M 4k"]);
    let host = Host::with_guest(&images);
    host.io(&["write -P 36 80M 4k"]);
    let report = host.reads(2);
    images.assert_restores_as(&report, "raw", &guest(&images));

    // Without a clean end they tell nothing.
    host.io(&["write -P 37 8M 4k", "flush"]);
    drop(host);
    let host = Host::with_guest(&images);
    let report = host.reads(33 * MIB / BLOCK + 1 - MIB / BLOCK);
    images.assert_restores_as(&report, "raw", &guest(&images));
    host.reads(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_an_nbd_server_gets_one_for_as_long_as_it_is_read() {
    let images = site(OWN, "").await;
    let host = Host::start(&images);
    host.reads(33 * MIB / BLOCK);
    host.let_guest_in();
    host.io(&["write -P 40 3M 64k"]);
    // Its server is taken by somebody else, and left alone.
    let words = said(&images.sites.farsite("north", &["replicate"]));
    assert!(words.contains("already running") && words.contains("qmp.nbd"), "{words}");
    host.assert_is_clean();
    host.show_guest_out();
    host.reads(1);
}

/// Writes a number at the start of the disk, then the same at its end, and so on; some time after the image is held, all
/// between them.
fn count_up(images: &Images) {
    let mut guest = Command::new("qemu-io")
        .args(["-f", "raw", &guest(images)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut commands = guest.stdin.take().unwrap();
    let mut answers = BufReader::new(guest.stdout.take().unwrap());
    let mut write = |number: u32, place: &str, length: &str| {
        writeln!(commands, "write -P {} {place} {length}", number % NUMBERS).unwrap();
        let mut answer = String::new();
        while !answer.contains("ops/sec") {
            assert!(answers.read_line(&mut answer).unwrap() > 0, "the guest's write fails: {answer}");
        }
        assert!(answer.contains("wrote "), "the guest's write fails: {answer}");
    };
    let mut since = 0;
    for number in 1.. {
        write(number, "0", "64k");
        write(number, "90M", "64k");
        since += u32::from(images.sites.data("held").exists());
        if since > 20 {
            break;
        }
    }
    write(50, "1M", "30M");
    drop(commands);
    assert!(guest.wait().unwrap().success());
}

const NUMBERS: u32 = 250;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_writes_while_its_image_is_read_is_of_a_later_instant() {
    // Nothing is read before the guest has written on.
    let images =
        site(SHARED, ", hooks: { before-capture: ['true'], after-capture: ['sh NORTH/wait'] }").await;
    let host = Host::with_guest(&images);
    host.io(&["write -P 0 0 64k", "write -P 0 90M 64k"]);
    let wait = "cd $(dirname $0); touch held; until test -e written; do sleep 0.01; done";
    fs::write(images.sites.data("wait"), wait).unwrap();
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            count_up(&images);
            fs::write(images.sites.data("written"), "").unwrap();
        });
        images.replicate()
    });
    assert_eq!(report["failed"], json!([]), "{report}");
    let restored = images.sites.path("restored");
    images.restore(&report, &restored);
    let disk = fs::read(&restored).unwrap();
    assert!(disk[MIB as usize..31 * MIB as usize].iter().all(|byte| *byte == 17), "bytes of a later instant");
    let at = |place: usize| {
        let block = &disk[place..place + BLOCK as usize];
        assert!(block.iter().all(|byte| *byte == block[0]), "a write was cut in two");
        u32::from(block[0])
    };
    let (start, end) = (at(0), at(90 * MIB as usize));
    assert!(start == end || start == (end + 1) % NUMBERS, "{start} was written before {end}");
    host.assert_is_clean();
    // It is told the next time.
    let report = images.replicate();
    assert!(report["read_bytes"].as_u64().unwrap() >= 30 * MIB, "{report}");
    images.assert_restores_as(&report, "raw", &guest(&images));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scratch_that_is_full_fails_the_capture_and_never_the_guest() {
    let small = format!("{SHARED}, scratch-size: 4MiB");
    let images =
        site(&small, ", hooks: { before-capture: ['true'], after-capture: ['sh NORTH/write'] }").await;
    let host = Host::with_guest(&images);
    // Twice all of it.
    let twice = format!("qemu-io -f raw -c 'write -P 60 0 96M' -c 'write -P 61 0 96M' '{}'", guest(&images));
    let write = format!("{twice} && echo written > {}", path(&images.sites.data("written")));
    fs::write(images.sites.data("write"), write).unwrap();
    let output = images.sites.farsite("north", &["replicate"]);
    let words = said(&output);
    assert!(!output.status.success(), "{words}");
    assert!(words.contains("could not be kept") && words.contains("scratch-size"), "{words}");
    assert_eq!(fs::read_to_string(images.sites.data("written")).unwrap(), "written\n");
    host.io(&["read -P 61 0 96M"]);
    let (bitmaps, rest) = host.holds();
    assert_eq!((bitmaps, rest), (Vec::new(), Vec::new()));
    assert_eq!(left_over(&images), Vec::<PathBuf>::new());
    // With less to keep it is captured.
    fs::write(images.sites.data("write"), "").unwrap();
    let report = host.reads(96 * MIB / BLOCK);
    images.assert_restores_as(&report, "raw", &guest(&images));
    host.stop();
    tool("qemu-img", &["check", "-q", path(&images.image())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_run_set_up_in_a_process_is_taken_down_by_the_next() {
    let images = site(OWN, ", hooks: { before-capture: ['true'], after-capture: ['sh NORTH/wait'] }").await;
    let host = Host::start(&images);
    fs::write(images.sites.data("wait"), "touch $(dirname $0)/waits; exec sleep 30").unwrap();
    let log = images.sites.path("killed.log");
    let mut run = Running::start(images.sites.command("north/farsite.yaml", &["replicate"]), &log);
    assert!(comes_true(LIMIT, || images.sites.data("waits").exists()), "{}", run.said());
    run.kill();
    let (bitmaps, rest) = host.holds();
    assert!(!bitmaps.is_empty() && !rest.is_empty() && left_over(&images).len() == 2, "{rest:?}");
    // Its guest goes on meanwhile.
    fs::write(images.sites.data("wait"), "").unwrap();
    host.reads(33 * MIB / BLOCK);
    host.reads(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_hangs_or_talks_nonsense_fails_the_item_in_bounded_time() {
    let images = site("socket: NORTH/monitor", "").await;
    let host = Host::start(&images);
    let socket = images.sites.data("monitor");
    let hangs = UnixListener::bind(&socket).unwrap();
    let words = said(&images.sites.farsite("north", &["replicate"]));
    assert!(words.contains("no greeting within") && words.contains("monitor"), "{words}");
    drop(hangs);
    for nonsense in
        ["HTTP/1.1 400\r\n", "{\"QMP\": {}}\n{\"return\": {}, \"id\": 99}\n", "{\"QMP\": {}}\n{\"id\": 1}\n"]
    {
        fs::remove_file(&socket).unwrap();
        let talks = UnixListener::bind(&socket).unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(|| talks.accept().unwrap().0.write_all(nonsense.as_bytes()).unwrap());
            images.sites.farsite("north", &["replicate"])
        });
        let words = said(&output);
        assert!(!output.status.success() && words.contains("looking for"), "{words}");
    }
    // A socket at which nobody listens: its process is gone, but the image is still held by one that is not named.
    let words = said(&images.sites.farsite("north", &["replicate"]));
    assert!(words.contains("another process has it open") && words.contains("qmp:"), "{words}");
    let (bitmaps, rest) = host.holds();
    assert_eq!((bitmaps, rest), (Vec::new(), Vec::new()));
}
