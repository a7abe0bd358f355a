//! This crate's own client against a real server: what it reads is what the image holds, its zeros and its bitmaps included;
//! and against this crate's server, whose errors it hears.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use farsite_nbd::{Address, Client, Export, Extent, Limits, Server};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

#[track_caller]
fn tool(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(socket: &Path, image: &Path) -> Killed {
    let mut command = Command::new("qemu-nbd");
    command.args(["-r", "-t", "-e", "0", "-f", "qcow2", "-B", "b", "-k"]).arg(socket).arg(image);
    let child = Killed(command.spawn().unwrap());
    let begun = std::time::Instant::now();
    // The socket is there a moment before anybody listens at it.
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(begun.elapsed() < LIMIT, "qemu-nbd does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn qemu_tells_bytes_zeros_and_bitmaps_to_several_readers_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let [image, socket] = ["i", "s"].map(|name| dir.path().join(name));
    let path = image.to_str().unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "20M"]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 7 1M 10M", path]);
    tool("qemu-img", &["bitmap", "--add", "-f", "qcow2", path, "b"]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 9 2M 64k", path]);
    let _server = serve(&socket, &image);
    let contexts = ["base:allocation", "qemu:dirty-bitmap:b"];
    let client = Client::connect(&socket, "", &contexts, LIMIT).unwrap();
    assert_eq!(client.size_bytes(), 20 << 20);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Longer than one request, over borders of data and holes.
                let mut bytes = vec![1; 12 << 20];
                client.read_exact_at(&mut bytes, 512).unwrap();
                let at = |offset: usize| bytes[offset - 512];
                assert_eq!((at(1000), at(1 << 20), at(2 << 20), at((2 << 20) + (64 << 10))), (0, 7, 9, 7));
                assert_eq!((at((11 << 20) - 1), at(11 << 20)), (7, 0));
            });
        }
    });
    let dirty = client.stretches("qemu:dirty-bitmap:b", 0..20 << 20).unwrap();
    assert_eq!(dirty, [(2 << 20, 0), (64 << 10, 1), ((18 << 20) - (64 << 10), 0)]);
    let zeros = client.stretches("base:allocation", 0..20 << 20).unwrap();
    assert_eq!(zeros[0], (1 << 20, 3), "{zeros:?}");
    assert!(client.read_exact_at(&mut [0; 2], (20 << 20) - 1).is_err(), "past the end is an error");
    assert!(client.stretches("qemu:dirty-bitmap:b", 20 << 20..21 << 20).is_err());
}

#[test]
fn what_a_server_does_not_have_is_an_error_and_so_is_its_death() {
    let dir = tempfile::tempdir().unwrap();
    let [image, socket] = ["i", "s"].map(|name| dir.path().join(name));
    let path = image.to_str().unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "1M"]);
    tool("qemu-img", &["bitmap", "--add", "-f", "qcow2", path, "b"]);
    let server = serve(&socket, &image);
    let lacking = Client::connect(&socket, "", &["qemu:dirty-bitmap:c"], LIMIT).unwrap_err();
    assert!(lacking.to_string().contains("qemu:dirty-bitmap:c"), "{lacking}");
    assert!(Client::connect(&socket, "elsewhere", &[], LIMIT).is_err());
    let client = Client::connect(&socket, "", &[], LIMIT).unwrap();
    assert!(client.stretches("base:allocation", 0..1).is_err(), "it was not agreed on");
    drop(server);
    assert!(client.read_exact_at(&mut [0; 10], 0).is_err());
}

struct Damaged;

#[async_trait]
impl Export for Damaged {
    fn name(&self) -> &'static str {
        "v"
    }
    fn size_bytes(&self) -> u64 {
        1 << 20
    }
    fn preferred_bytes(&self) -> u32 {
        4096
    }
    async fn read(&self, range: std::ops::Range<u64>) -> Result<Bytes, String> {
        if range.end > 1 << 19 {
            return Err("this half is damaged".into());
        }
        Ok(Bytes::from(vec![5; (range.end - range.start) as usize]))
    }
    async fn extent(&self, range: std::ops::Range<u64>) -> Result<Extent, String> {
        Ok(Extent { end: range.end, is_hole: false })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_server_is_heard_with_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let server = Server::bind(&Address::Socket(socket.clone()), Limits::default()).await.unwrap();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(server.run(Arc::new(Damaged), cancel.clone()));
    let read = tokio::task::spawn_blocking(move || {
        let client = Client::connect(&socket, "v", &["base:allocation"], LIMIT).unwrap();
        let mut bytes = [0; 100];
        client.read_exact_at(&mut bytes, 10).unwrap();
        assert_eq!(bytes, [5; 100]);
        client.read_exact_at(&mut bytes, (1 << 20) - 100).unwrap_err().to_string()
    });
    let error = read.await.unwrap();
    assert!(error.contains("this half is damaged"), "{error}");
    cancel.cancel();
    task.await.unwrap().unwrap();
}
