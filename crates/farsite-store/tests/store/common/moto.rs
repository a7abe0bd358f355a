//! moto's server, in a process of its own on loopback: a second S3 server, written by other people than ours. `cargo xtask
//! test` installs it; a test that needs it fails where it is missing, and says so.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use farsite_store::backend::S3Access;

pub struct Moto {
    server: Child,
    pub endpoint: String,
}

impl Moto {
    /// Starts it and makes the bucket `replica`, and `locked`, which has Object Lock.
    pub async fn start() -> Self {
        let program = program();
        let mut server = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "{} cannot be started: {error}\n  hint: `cargo xtask test` installs it below target/",
                    program.display()
                )
            });
        let mut log = BufReader::new(server.stderr.take().unwrap());
        let endpoint = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "moto ended before it served");
            if let Some((_, address)) = line.split_once("Running on http://") {
                break format!("http://{}", address.trim());
            }
        };
        // It must never wait for somebody to read what it says.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let moto = Self { server, endpoint };
        moto.bucket("replica", false).await;
        moto.bucket("locked", true).await;
        moto
    }

    pub fn access(&self) -> S3Access {
        S3Access {
            endpoint: Some(self.endpoint.clone()),
            region: "us-east-1".into(),
            access_key: "owner".into(),
            secret_key: "secret-secret".into(),
            session_token: None,
            path_style: true,
        }
    }

    /// Buckets are made by their owner with a tool of theirs: one plain request is enough for moto.
    async fn bucket(&self, name: &str, locked: bool) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = self.endpoint.trim_start_matches("http://");
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let lock = if locked { "x-amz-bucket-object-lock-enabled: true\r\n" } else { "" };
        let request = format!(
            "PUT /{name} HTTP/1.1\r\nhost: {address}\r\nauthorization: AWS4-HMAC-SHA256 Credential=owner/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n{lock}content-length: 0\r\nconnection: close\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Below the workspace's target folder, where tests run from.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("FARSITE_MOTO") {
        return named.into();
    }
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().find(|dir| dir.join("moto/bin/moto_server").exists());
    let target =
        target.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    target.join("moto/bin/moto_server")
}
