//! South's service: a little HTTP server that answers /healthz with what it reads from the restored database. The runbook
//! starts it, asks it, and stops it by these commands; it runs on when the command that started it ends.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use farsite_model::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::configs::SOUTH_HOST;
use super::database::{Connection, Kind};
use super::layout::GROUP;
use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, FAILED, Failure};

/// How long the service may take until it answers, and how long one answer may take.
const START_LIMIT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// host:port
    #[arg(long, global = true, default_value = "127.0.0.1:0")]
    listen: String,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Answer until killed
    Serve,
    /// Start it in the background, unless it runs
    Start,
    Stop,
    /// Exit code 0 when it answers
    Status,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let (pid_file, log) = (config.state_dir().join("demo-api.pid"), config.state_dir().join("demo-api.log"));
    match args.what {
        What::Serve => {
            tokio::select! {
                ended = serve(&config, &args.listen) => ended,
                () = context.cancel.cancelled() => Ok(DONE),
            }
        }
        What::Start => start(&config.folder.join("farsite.yaml"), &args.listen, &pid_file, &log).await,
        What::Stop => {
            stop(&pid_file);
            Ok(DONE)
        }
        What::Status => {
            let well = get(&args.listen).await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200 "));
            Ok(if well { DONE } else { FAILED })
        }
    }
}

/// The restored database, as the places of the configuration name it.
fn database(config: &Config) -> Result<(Kind, PathBuf), Failure> {
    let places = config.places.iter().find(|(group, _)| group.as_str() == GROUP).map(|(_, places)| places);
    let sqlite =
        places.and_then(|places| places.sqlite.as_ref()).map(|place| (Kind::Sqlite, place.path.clone()));
    let mariadb =
        places.and_then(|places| places.mariadb.as_ref()).map(|place| (Kind::Mariadb, place.socket.clone()));
    sqlite
        .or(mariadb)
        .ok_or_else(|| Failure::usage(format!("group {GROUP} has no place for its database here")))
}

async fn serve(config: &Config, listen: &str) -> Ended {
    let (kind, place) = database(config)?;
    let listener = TcpListener::bind(listen).await.map_err(Failure::io(format!("listening on {listen}")))?;
    loop {
        let Ok((mut socket, _)) = listener.accept().await else { continue };
        let place = place.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(ANSWER_LIMIT, async {
                let mut request = [0; 2048];
                let read = socket.read(&mut request).await.unwrap_or(0);
                let is_health = request[..read].starts_with(b"GET /healthz ");
                let (status, body) =
                    if is_health { health(kind, &place).await } else { (404, "not here\n".to_owned()) };
                let reason = if status == 200 { "OK" } else { "Unwell" };
                let answer = format!(
                    "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = socket.write_all(answer.as_bytes()).await;
            })
            .await;
        });
    }
}

/// A healthy service reads its tables, and has no address of another site in its catalog.
async fn health(kind: Kind, place: &Path) -> (u16, String) {
    let counts = async {
        // Opening would make an empty database where there is none.
        if !place.exists() {
            return Err(format!("{} is not there", place.display()));
        }
        let mut database = Connection::open(kind, place).await?;
        let mut count = async |schema: &str, table: &str| {
            database.number(&format!("SELECT count(*) FROM {}", kind.table(schema, table))).await
        };
        let (images, volumes) = (count("glance", "images").await?, count("cinder", "volumes").await?);
        let heartbeats = count("demo", "heartbeat").await?;
        let elsewhere = format!(
            "SELECT count(*) FROM {} WHERE url NOT LIKE '%{SOUTH_HOST}%'",
            kind.table("keystone", "endpoint")
        );
        Ok::<_, String>((images, volumes, heartbeats, database.number(&elsewhere).await?))
    };
    match counts.await {
        Ok((images, volumes, heartbeats, elsewhere)) => {
            let body = serde_json::json!({
                "images": images, "volumes": volumes, "heartbeats": heartbeats, "endpoints_elsewhere": elsewhere,
            });
            (if elsewhere == 0 { 200 } else { 503 }, format!("{body}\n"))
        }
        Err(why) => (503, format!("{}\n", serde_json::json!({ "error": why }))),
    }
}

/// The answer to `GET /healthz`, or nothing.
async fn get(address: &str) -> Option<String> {
    tokio::time::timeout(ANSWER_LIMIT, async {
        let mut socket = TcpStream::connect(address).await.ok()?;
        socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: south\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    })
    .await
    .ok()
    .flatten()
}

async fn start(config: &Path, listen: &str, pid_file: &Path, log: &Path) -> Ended {
    if get(listen).await.is_some() {
        return Ok(DONE);
    }
    let fail = |what: &Path| Failure::io(format!("opening {}", what.display()));
    if let Some(parent) = pid_file.parent() {
        std::fs::create_dir_all(parent).map_err(fail(parent))?;
    }
    let log_file =
        std::fs::File::options().create(true).append(true).mode(0o600).open(log).map_err(fail(log))?;
    let program = std::env::current_exe().map_err(Failure::io("finding this program"))?;
    let child = tokio::process::Command::new(program)
        .args(["demo-api", "serve", "--listen", listen, "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log_file)
        .process_group(0)
        .spawn()
        .map_err(Failure::io("starting the service"))?;
    let pid = child.id().unwrap_or(0);
    std::fs::write(pid_file, pid.to_string()).map_err(fail(pid_file))?;
    let begun = Instant::now();
    while begun.elapsed() < START_LIMIT {
        if get(listen).await.is_some() {
            return Ok(DONE);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(Failure::failed(format!("the service does not answer on {listen}"))
        .hint(format!("see {}", log.display())))
}

/// Ends the process of the pid file, if it is this service: numbers are used again.
fn stop(pid_file: &Path) {
    let pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let is_ours = pid.and_then(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok());
    if let (Some(pid), Some(cmdline)) = (pid.and_then(rustix::process::Pid::from_raw), is_ours)
        && String::from_utf8_lossy(&cmdline).contains("demo-api")
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let _ = std::fs::remove_file(pid_file);
}
