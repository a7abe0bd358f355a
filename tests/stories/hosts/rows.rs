//! The database is here and the volumes are at the other host, and a point holds both of one moment.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use farsite_scenarios::mariadb::Server;

/// Commits a row and only then writes its number into the volume, again and again; gives where the log stood after each row.
fn writes(server: &Server, volume: &Path, stop: &AtomicBool) -> Vec<u64> {
    let mut client =
        server.client().arg("--unbuffered").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut ask, mut answers) =
        (client.stdin.take().unwrap(), BufReader::new(client.stdout.take().unwrap()));
    let flushed = std::os::unix::fs::OpenOptionsExt::custom_flags(
        fs::File::options().write(true),
        rustix::fs::OFlags::DSYNC.bits().cast_signed(),
    )
    .open(volume)
    .unwrap();
    let mut stood = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let n = stood.len() as u64 + 1;
        writeln!(ask, "INSERT INTO d.t VALUES ({n}); SHOW MASTER STATUS;").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        stood.push(answer.split('\t').nth(1).unwrap_or_else(|| panic!("{answer:?}")).trim().parse().unwrap());
        flushed.write_all_at(&n.to_le_bytes(), 0).unwrap();
    }
    drop(ask);
    client.wait().unwrap();
    stood
}

struct Stopped<'s>(&'s AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn rows_here_and_volumes_there_are_of_one_moment() {
    if !mounts::are_own() {
        return mounts::with_own(module_path!(), "rows_here_and_volumes_there_are_of_one_moment", &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = with_items(SHARE).await;
        let server = Server::start(&sites.path("db"));
        server.sql("CREATE DATABASE d; CREATE TABLE d.t (n BIGINT PRIMARY KEY) ENGINE=InnoDB");
        let database = format!(
            "  - mariadb: {{ socket: {}, user: root, log: continuous, on: {} }}\n",
            server.socket().display(),
            here()
        );
        sites.policy(&format!("{database}{SHARE}"));
        let first = replicate(&sites);
        assert_eq!(first["whole"], true, "{first}");

        let (stop, volume) = (AtomicBool::new(false), sites.data("volumes").join("volume-a"));
        let (reports, stood) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| writes(&server, &volume, &stop));
            let reports: Vec<_> = {
                // Also when this panics: the scope waits for the writer.
                let _stop = Stopped(&stop);
                std::thread::sleep(Duration::from_millis(300));
                (0..3).map(|_| replicate(&sites)).collect()
            };
            (reports, writer.join().unwrap())
        });
        for report in reports {
            assert_eq!(report["whole"], true, "{report}");
            let point = report["point"].as_str().unwrap().parse().unwrap();
            let manifest = sites.manifest(point).await;
            let log = manifest.items.iter().find_map(|item| item.log.as_ref()).unwrap();
            let rows = stood.iter().filter(|at| **at <= log.p1.offset).count() as u64;
            let bytes = restored(&sites, &report, "cinder/volume-a");
            let written = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(
                rows > 0 && (rows - 1..=rows).contains(&written),
                "{rows} rows, and {written} in the volume"
            );
        }
        assert_nothing_is_left(&sites);
    });
}
