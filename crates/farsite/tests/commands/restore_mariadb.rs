//! One database out of a point, its shipped log replayed to the point's own position or to a moment.

use std::path::{Path, PathBuf};

use crate::common::{finish, program};
use farsite_sources::mariadb::instance::Instance;

/// A demo that is kept; removed with all that runs there when the test ends.
struct Kept {
    folder: tempfile::TempDir,
    site: PathBuf,
}

impl Kept {
    fn play() -> Self {
        // Short, because a socket's path may have 107 bytes only.
        let folder = tempfile::Builder::new().prefix("fr").tempdir_in("/tmp").unwrap();
        let args = ["demo", "--database", "mariadb", "--store", "folder", "--seed", "31", "--keep", "--json"];
        let ended = finish(program(folder.path()).args(args).env("TMPDIR", folder.path()));
        let found = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.path());
        let site = found.into_iter().find(|path| path.is_dir()).unwrap();
        let kept = Self { folder, site };
        ended.expect(0);
        kept
    }
    fn south(&self, args: &[&str]) -> crate::common::Ended {
        finish(
            program(self.folder.path()).arg("--config").arg(self.site.join("south/farsite.yaml")).args(args),
        )
    }
}
impl Drop for Kept {
    fn drop(&mut self) {
        let _ = finish(program(self.folder.path()).args(["demo", "--remove"]).arg(&self.site));
    }
}

/// The heartbeat's newest row in a restored folder, and its time.
fn newest(datadir: &Path) -> (i64, i64) {
    let sockets = tempfile::Builder::new().prefix("fr").tempdir_in("/tmp").unwrap();
    let instance = Instance {
        datadir: datadir.to_owned(),
        socket: sockets.path().join("s"),
        port: None,
        server_args: Vec::new(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        instance.start(&datadir.join("test.err"), &[]).await.unwrap();
        let rows = instance.query("SELECT max(n), max(at_ms) FROM demo.heartbeat").await;
        instance.stop().await.unwrap();
        let rows = rows.unwrap();
        let number = |column: usize| rows[0][column].as_ref().unwrap().parse().unwrap();
        (number(0), number(1))
    })
}

#[test]
fn heavy_a_database_comes_back_at_its_points_position_or_at_a_moment() {
    let kept = Kept::play();
    let points = kept.south(&["points", "list", "--json"]).expect(0).json();
    let oldest = points.as_array().unwrap().last().unwrap();
    let (point, captured) = (oldest["id"].as_str().unwrap(), oldest["captured"].as_str().unwrap());
    let captured_ms = captured.parse::<jiff::Timestamp>().unwrap().as_millisecond();

    let at_point = kept.folder.path().join("point");
    kept.south(&["restore", point, "mariadb/main", "--to", at_point.to_str().unwrap()]).expect(0);
    let (rows, _) = newest(&at_point);

    // Log events carry whole seconds.
    let moment_ms = captured_ms + 4_000;
    let moment = jiff::Timestamp::from_millisecond(moment_ms).unwrap().to_string();
    let later = kept.folder.path().join("later");
    let args = ["restore", point, "main", "--to", later.to_str().unwrap(), "--at", &moment];
    let ended = kept.south(&args);
    ended.expect(0);
    let (more, newest_ms) = newest(&later);
    assert!(more > rows, "{more} rows at {moment}, {rows} at the point");
    assert!(
        newest_ms < moment_ms && newest_ms > captured_ms + 1_500,
        "{newest_ms} {captured_ms} {moment_ms}"
    );

    // Before the base there is nothing to replay from, and nothing is left behind.
    let never = kept.folder.path().join("never");
    let args = ["restore", point, "mariadb/main", "--to", never.to_str().unwrap(), "--at", "1h ago"];
    kept.south(&args).expect(1).says(&["hint:", "nothing was left"]);
    assert!(!never.exists());
}
