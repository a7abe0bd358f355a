//! A Ceph cluster of one monitor and one OSD in a folder: nothing but a temporary folder and a loopback port comes in; a
//! configuration with an empty pool `volumes` goes out. Its daemons end with it, and with the process that started them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::process::{Running, comes_true};
use crate::said;

/// Its first answer, on a machine that does much else.
const START: Duration = Duration::from_mins(2);

/// A running cluster. The daemons are killed when this is dropped; the folder is the caller's.
pub struct Ceph {
    pub conf: PathBuf,
    folder: PathBuf,
    daemons: Vec<Running>,
}

impl Ceph {
    /// Monitor, OSD and pool, in some ten seconds.
    pub fn start(folder: &Path) -> Self {
        for below in ["mon", "osd"] {
            std::fs::create_dir_all(folder.join(below)).expect("folders can be made");
        }
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a free port").port();
        let conf = folder.join("ceph.conf");
        std::fs::write(&conf, configuration(folder, port)).expect("a file");
        let mut ceph = Self { conf, folder: folder.to_owned(), daemons: Vec::new() };
        ceph.make_keys();
        let fsid = FSID;
        let address = format!("[v1:127.0.0.1:{port}/0]");
        ceph.run(
            "monmaptool",
            &["--create", "--fsid", fsid, "--clobber", "--addv", "a", &address, &ceph.at("monmap")],
        );
        let keyring = ceph.at("keyring");
        ceph.run("ceph-mon", &["--mkfs", "-i", "a", "--monmap", &ceph.at("monmap"), "--keyring", &keyring]);
        ceph.daemon("ceph-mon", "a");
        ceph.run("ceph", &["--connect-timeout", "60", "mon", "stat"]);
        ceph.run("ceph", &["osd", "new", OSD]);
        ceph.run("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", OSD]);
        ceph.daemon("ceph-osd", "0");
        let is_up =
            || said(&ceph.output("ceph", &["osd", "stat", "-f", "json"])).contains("\"num_up_osds\":1");
        assert!(comes_true(START, is_up), "no OSD: {}", ceph.daemons[1].said());
        ceph.pool("volumes");
        ceph
    }

    /// One more pool.
    #[track_caller]
    pub fn pool(&self, name: &str) {
        self.run("ceph", &["osd", "pool", "create", name, "8"]);
        self.run("rbd", &["pool", "init", name]);
    }

    /// What a guest writes: bytes at an offset of an image (`POOL/IMAGE`).
    #[track_caller]
    pub fn write(&self, image: &str, offset: u64, bytes: &[u8]) {
        let (pool, name) = image.split_once('/').expect("an image is in a pool");
        let file = self.folder.join("written");
        std::fs::write(&file, bytes).expect("a file");
        let script = "import sys, rados, rbd\n\
            cluster = rados.Rados(conffile=sys.argv[1], rados_id='admin'); cluster.connect()\n\
            image = rbd.Image(cluster.open_ioctx(sys.argv[2]), sys.argv[3])\n\
            image.write(open(sys.argv[5], 'rb').read(), int(sys.argv[4])); image.close()\n";
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", script]).arg(&self.conf).args([pool, name, &offset.to_string()]).arg(&file);
        let output = python.output().expect("Python starts");
        assert!(output.status.success(), "{}", said(&output));
    }

    /// All bytes of an image.
    #[track_caller]
    pub fn read(&self, image: &str) -> Vec<u8> {
        let file = self.folder.join("read");
        let _ = std::fs::remove_file(&file);
        self.run("rbd", &["export", "--no-progress", image, &file.display().to_string()]);
        std::fs::read(&file).expect("it was exported")
    }

    /// The names of a pool's images, or with `snap` before an image those of its snapshots.
    #[track_caller]
    pub fn names(&self, args: &[&str]) -> Vec<String> {
        let args = [args, &["--format", "json"]].concat();
        let listed: serde_json::Value = serde_json::from_str(&self.run("rbd", &args)).expect("JSON");
        let name =
            |one: &serde_json::Value| one.as_str().or(one["name"].as_str()).unwrap_or_default().to_owned();
        listed.as_array().expect("a list").iter().map(name).collect()
    }

    fn at(&self, below: &str) -> String {
        self.folder.join(below).display().to_string()
    }

    fn make_keys(&self) {
        let keyring = self.at("keyring");
        let key = |name: &str, caps: &[&str], more: &[&str]| {
            let mut args = vec![keyring.as_str(), "--gen-key", "-n", name];
            args.extend(more);
            for daemon in caps {
                args.extend(["--cap", daemon, "allow *"]);
            }
            self.run("ceph-authtool", &args);
        };
        key("mon.", &["mon"], &["--create-keyring"]);
        key("client.admin", &["mon", "osd", "mgr"], &[]);
        key("osd.0", &["osd"], &["--cap", "mon", "allow profile osd"]);
    }

    fn daemon(&mut self, program: &str, id: &str) {
        // With the thread that starts it, which is the test's own.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program, "-f", "-i", id, "--conf"]).arg(&self.conf);
        self.daemons.push(Running::start(command, &self.folder.join(format!("{program}.log"))));
    }

    fn output(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["120", program]).args(args).arg("--conf").arg(&self.conf);
        command.output().expect("timeout(1) starts")
    }

    /// Runs one of Ceph's programs to its good end.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.output(program, args);
        assert!(output.status.success(), "{program} {args:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

const FSID: &str = "0c9a2a3c-3a3e-4b7c-9c58-3e2f3d1a7b10";
const OSD: &str = "5d0f6d0e-5f0c-4f0d-8c7e-6b1f2f0e9a21";

fn configuration(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    format!(
        "[global]
fsid = {FSID}
mon host = [v1:127.0.0.1:{port}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr2 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
admin socket =
run dir = {folder}
pid file =
log file =
log to stderr = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon data avail crit = 1
mon osd full ratio = 0.99
mon osd nearfull ratio = 0.98
mon osd backfillfull ratio = 0.985
osd crush chooseleaf type = 0
rbd default features = 61
auth allow insecure global id reclaim = false
[mon]
mon data = {folder}/mon
[osd]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = 4294967296
bluestore block create = true
osd memory target = 939524096
osd memory target autotune = false
bluestore cache autotune = false
bluestore cache size = 67108864
osd op num shards = 1
osd op num threads per shard = 2
osd class update on start = false
osd client watch timeout = 5
"
    )
}
