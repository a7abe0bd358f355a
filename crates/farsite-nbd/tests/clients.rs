//! The real clients against the server: what they see is what the export holds, holes and errors included.

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use farsite_nbd::{Address, Export, Extent, Limits, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

const PIECE: u64 = 65_536;
const SIZE: u64 = 40 * PIECE + 512;

/// Every third piece is a hole; a range may be damaged.
struct Disk {
    damaged: Range<u64>,
}

impl Disk {
    fn bytes() -> Vec<u8> {
        (0..SIZE).map(|at| if at / PIECE % 3 == 1 { 0 } else { (at * 7 / 3 % 251) as u8 + 1 }).collect()
    }
}

#[async_trait]
impl Export for Disk {
    fn name(&self) -> &'static str {
        "volume/v"
    }
    fn size_bytes(&self) -> u64 {
        SIZE
    }
    fn preferred_bytes(&self) -> u32 {
        PIECE as u32
    }
    async fn read(&self, range: Range<u64>) -> Result<Bytes, String> {
        if range.start < self.damaged.end && self.damaged.start < range.end {
            return Err("packs/aa/aabb: the blob at 48+100 does not open".into());
        }
        Ok(Bytes::from(Self::bytes()[range.start as usize..range.end as usize].to_vec()))
    }
    async fn extent(&self, range: Range<u64>) -> Result<Extent, String> {
        let piece = range.start / PIECE;
        Ok(Extent { end: ((piece + 1) * PIECE).min(range.end), is_hole: piece % 3 == 1 })
    }
}

struct Serving {
    uri: String,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn serve(address: Address, damaged: Range<u64>) -> Serving {
    let server = Server::bind(&address, Limits::default()).await.unwrap();
    let (uri, cancel) = (server.uri().unwrap(), CancellationToken::new());
    let task = tokio::spawn(server.run(Arc::new(Disk { damaged }), cancel.clone()));
    Serving { uri, cancel, task }
}

async fn on_tcp() -> Serving {
    serve(Address::Tcp(([127, 0, 0, 1], 0).into()), 0..0).await
}

/// A client that hangs fails the test.
async fn client(program: &str, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::from(Command::new(program));
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_mins(1), command.output()).await.expect(program);
    output.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"))
}

async fn good(program: &str, args: &[&str]) -> String {
    let output = client(program, args).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn libnbd_and_qemu_see_the_size_the_bytes_and_the_holes() {
    let serving = on_tcp().await;
    let uri = &serving.uri;
    let info = good("nbdinfo", &["--json", uri]).await;
    assert!(info.contains(&format!("\"export-size\": {SIZE}")), "{info}");
    assert!(info.contains("\"structured\": true") && info.contains("base:allocation"), "{info}");
    assert!(info.contains("\"is_read_only\": true"), "{info}");
    let listed = good("nbdinfo", &["--list", uri]).await;
    assert!(listed.contains("volume/v"), "{listed}");
    let map = good("nbdinfo", &["--map", uri]).await;
    assert_eq!(map.lines().count(), 28, "{map}");
    assert_eq!(map.lines().filter(|line| line.contains("hole,zero")).count(), 14, "{map}");
    let info = good("qemu-img", &["info", uri]).await;
    assert!(info.contains(&SIZE.to_string()), "{info}");

    let dir = tempfile::tempdir().unwrap();
    let [copied, converted] = ["copied", "converted"].map(|name| dir.path().join(name));
    good("nbdcopy", &[uri, path(&copied)]).await;
    assert!(std::fs::read(&copied).unwrap() == Disk::bytes());
    good("qemu-img", &["convert", "-O", "raw", uri, path(&converted)]).await;
    assert!(std::fs::read(&converted).unwrap() == Disk::bytes());
    let same = good("qemu-img", &["compare", "-F", "raw", "-f", "raw", path(&copied), uri]).await;
    assert!(same.contains("identical"), "{same}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_is_for_its_user_only_and_goes_with_the_server() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("a socket");
    let serving = serve(Address::Socket(socket.clone()), 0..0).await;
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let size = good("nbdinfo", &["--size", &serving.uri]).await;
    assert_eq!(size.trim(), SIZE.to_string());
    assert!(Server::bind(&Address::Socket(socket.clone()), Limits::default()).await.is_err());
    serving.cancel.cancel();
    serving.task.await.unwrap().unwrap();
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_written() {
    let serving = on_tcp().await;
    let output = client("qemu-io", &["-f", "raw", "-c", "write 0 4096", &serving.uri]).await;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() || said.contains("not permitted") || said.contains("read-only"),
        "{said}"
    );
    good("nbdcopy", &[&serving.uri, "null:"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_range_is_an_error_and_all_others_are_read() {
    let serving = serve(Address::Tcp(([127, 0, 0, 1], 0).into()), 3 * PIECE..3 * PIECE + 1).await;
    let read = |at: u64| {
        let uri = serving.uri.clone();
        async move {
            let command = format!("read {at} 4096");
            client("qemu-io", &["-r", "-f", "raw", "-c", &command, &uri]).await
        }
    };
    let bad = read(3 * PIECE).await;
    let said = String::from_utf8_lossy(&bad.stdout) + String::from_utf8_lossy(&bad.stderr);
    assert!(said.contains("Input/output error"), "{said}");
    for at in [0, 2 * PIECE, 3 * PIECE + 4096, 39 * PIECE] {
        let fine = read(at).await;
        let said = String::from_utf8_lossy(&fine.stdout);
        assert!(said.contains("read 4096/4096"), "at {at}: {said}");
    }
    let output = client("nbdcopy", &[&serving.uri, "null:"]).await;
    assert!(!output.status.success(), "a copy with a damaged range must not look whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_harms_nobody_but_its_sender() {
    let serving = on_tcp().await;
    let address = serving.uri.strip_prefix("nbd://").unwrap().to_owned();
    let connect = || tokio::net::TcpStream::connect(&address);
    for nonsense in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 4096], &[0; 4]] {
        let mut stream = connect().await.unwrap();
        let _ = stream.write_all(nonsense).await;
        drop(stream);
    }
    // An option of 4 GiB is refused, and the connection is still of use.
    let mut stream = connect().await.unwrap();
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).await.unwrap();
    stream.write_all(&3u32.to_be_bytes()).await.unwrap();
    for (option, data) in [(7u32, vec![0u8; 20_000]), (99, Vec::new()), (2, Vec::new())] {
        stream.write_all(b"IHAVEOPT").await.unwrap();
        stream.write_all(&option.to_be_bytes()).await.unwrap();
        stream.write_all(&(data.len() as u32).to_be_bytes()).await.unwrap();
        stream.write_all(&data).await.unwrap();
        let mut head = [0; 20];
        stream.read_exact(&mut head).await.unwrap();
        let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
        let expected = match option {
            7 => (1 << 31) | 9,
            99 => (1 << 31) | 1,
            _ => 1,
        };
        assert_eq!(kind, expected, "option {option}");
        let mut rest = vec![0; u32::from_be_bytes(head[16..20].try_into().unwrap()) as usize];
        stream.read_exact(&mut rest).await.unwrap();
    }
    good("nbdinfo", &["--size", &serving.uri]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_client_without_structured_replies_is_served_too() {
    let serving = on_tcp().await;
    let mut stream =
        tokio::net::TcpStream::connect(serving.uri.strip_prefix("nbd://").unwrap()).await.unwrap();
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).await.unwrap();
    // Without NO_ZEROES, by the oldest option.
    stream.write_all(&1u32.to_be_bytes()).await.unwrap();
    stream.write_all(b"IHAVEOPT").await.unwrap();
    stream.write_all(&[0, 0, 0, 1, 0, 0, 0, 0]).await.unwrap();
    let mut entered = [0; 8 + 2 + 124];
    stream.read_exact(&mut entered).await.unwrap();
    assert_eq!(u64::from_be_bytes(entered[..8].try_into().unwrap()), SIZE);
    for (offset, length, error) in
        [(10u64, 100_000u32, 0u32), (SIZE - 4, 4, 0), (SIZE - 4, 5, 22), (0, 0, 22)]
    {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend_from_slice(&[0, 0, 0, 0]);
        request.extend_from_slice(&77u64.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&length.to_be_bytes());
        stream.write_all(&request).await.unwrap();
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(u32::from_be_bytes(reply[4..8].try_into().unwrap()), error, "{offset}+{length}");
        if error == 0 {
            let mut bytes = vec![0; length as usize];
            stream.read_exact(&mut bytes).await.unwrap();
            assert!(bytes == Disk::bytes()[offset as usize..][..length as usize]);
        }
    }
}
