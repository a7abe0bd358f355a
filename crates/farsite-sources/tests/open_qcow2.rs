//! Several captures of images that one process of QEMU has open.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use farsite_model::clock::SystemClock;
use farsite_model::{ItemId, ItemKind};
use farsite_sources::{Capture, CaptureContext, Content, Source};

/// A process with two images open.
struct Host(Child);

impl Host {
    fn start(dir: &Path) -> Self {
        let mut daemon = Command::new("qemu-storage-daemon");
        let monitor = dir.join("monitor");
        daemon.arg("--chardev").arg(format!("socket,id=m,path={},server=on,wait=off", monitor.display()));
        daemon.args(["--monitor", "chardev=m"]);
        for (name, byte) in [("a", 1), ("b", 2)] {
            let image = dir.join("volumes").join(name);
            run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("4M"));
            let write = format!("write -P {byte} 0 4M");
            run(Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(&image));
            let node =
                format!("driver=qcow2,node-name={name},file.driver=file,file.filename={}", image.display());
            daemon.args(["--blockdev", &node]);
        }
        let host = Self(daemon.stdin(Stdio::null()).spawn().unwrap());
        let begun = Instant::now();
        while UnixStream::connect(&monitor).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        host
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn context(dir: &Path, owner: &str) -> CaptureContext {
    let scratch = dir.join(owner);
    std::fs::create_dir_all(&scratch).unwrap();
    CaptureContext {
        clock: Arc::new(SystemClock),
        kept: scratch.join("kept"),
        scratch,
        timeout: Duration::from_mins(1),
        frozen: false,
        owner: owner.to_owned(),
    }
}

#[track_caller]
fn assert_holds(capture: &Capture, byte: u8) {
    let Content::Volume(content) = &capture.content else { panic!("it is a volume") };
    let mut bytes = vec![0; 4 << 20];
    content.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|there| *there == byte));
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_within_one_process_share_its_monitor_and_those_of_one_image_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = dir.path().join("volumes");
    std::fs::create_dir(&volumes).unwrap();
    let _host = Host::start(dir.path());
    let monitor = dir.path().join("monitor");
    let entry =
        serde_json::json!({"cinder": {"path": volumes, "format": "qcow2", "qmp": {"socket": monitor}}});
    let source: Arc<dyn Source> =
        Arc::from(farsite_sources::source(&serde_json::from_value(entry).unwrap(), &no_cloud()).unwrap());
    let [a, b] = ["a", "b"].map(|name| ItemId::new(ItemKind::Cinder, name));
    let [one, two] = ["one", "two"].map(|owner| context(dir.path(), owner));
    let first = source.capture(&a, &one).await.unwrap();
    let second = source.capture(&b, &one).await.unwrap();
    let (again, item) = (source.clone(), a.clone());
    let mut waits = tokio::spawn(async move { again.capture(&item, &two).await });
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waits).await.is_err(), "it does not wait");
    assert_holds(&first, 1);
    assert_holds(&second, 2);
    drop(first);
    let third = waits.await.unwrap().unwrap();
    assert_holds(&third, 1);
    assert_holds(&second, 2);
    drop((second, third));
    // The last one has stopped the server and let go of the monitor; nothing else stays.
    let monitor = UnixStream::connect(&monitor).unwrap();
    monitor.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut lines = BufReader::new(&monitor).lines();
    let mut ask = |command: &str| {
        writeln!(&monitor, "{{\"execute\": \"{command}\"}}").unwrap();
        lines.find(|line| !line.as_ref().unwrap().contains("\"QMP\"")).unwrap().unwrap()
    };
    ask("qmp_capabilities");
    for (command, says) in [
        ("query-jobs", "\"return\": []"),
        ("query-block-exports", "\"return\": []"),
        ("nbd-server-stop", "not running"),
    ] {
        let said = ask(command);
        assert!(said.contains(says), "{command}: {said}");
    }
    assert!(!ask("query-named-block-nodes").contains("farsite-"));
    assert_eq!(std::fs::read_dir(&volumes).unwrap().count(), 2, "a folder stays");
}

/// A site whose cloud cannot be asked.
fn no_cloud() -> std::sync::Arc<farsite_openstack::SiteCloud> {
    let (site, about) = ("north".parse().unwrap(), farsite_model::config::Site::default());
    std::sync::Arc::new(farsite_openstack::SiteCloud::new(&site, about, farsite_openstack::Limits::default()))
}
