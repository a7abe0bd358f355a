//! Farsite at two sites of the lab: a store, the keys, a policy at north and places at south, as an operator would write them.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Options, Storage};
use crate::failure::Failure;
use crate::lab::site::{self, Site};
use crate::step::{minutes, run};

/// Both sites' Farsite.
pub struct Sites {
    pub north: Site,
    pub south: Site,
    farsite: PathBuf,
    xtask: PathBuf,
    /// The lab's Python, and where the scenario's scripts are.
    pub python: PathBuf,
    pub scripts: PathBuf,
    folder: PathBuf,
    pub storage: Storage,
}

impl Sites {
    pub fn new(root: &Path, options: &Options, farsite: &Path, xtask: &Path) -> Result<Self, Failure> {
        let folder = &options.folder;
        let lab = folder.join("lab");
        let named = |name: &str| {
            Site::named(name, &lab).ok_or_else(|| Failure::new(format!("no site {name}"), "see `lab status`"))
        };
        Ok(Self {
            north: named("north")?,
            south: named("south")?,
            farsite: farsite.to_owned(),
            xtask: xtask.to_owned(),
            python: crate::lab::environment(root).join("bin/python"),
            scripts: root.join("xtask/scenario"),
            folder: folder.clone(),
            storage: options.storage,
        })
    }

    /// A pool as the policy and the places name it.
    fn pool(site: &Site, pool: &str) -> String {
        format!("rbd: {{ pool: {pool}, user: admin, conf: {} }}", site.ceph_conf().display())
    }

    pub fn configuration(&self, site: &str) -> PathBuf {
        self.folder.join("keys").join(site).join("farsite.yaml")
    }

    pub fn policy_of(&self, whose: &str) -> PathBuf {
        self.folder.join("keys").join(whose).join("policies/cloud.yaml")
    }

    /// The program with the configuration of `north`, `south` or `operator`.
    pub fn command(&self, whose: &str, words: &[&str]) -> Command {
        let mut command = Command::new(&self.farsite);
        command.arg("--config").arg(self.configuration(whose)).args(words);
        command.env("NO_COLOR", "1").env_remove("FARSITE_CONFIG");
        command.env("OS_CLIENT_CONFIG_FILE", self.north.lab().join("clouds.yaml"));
        command
    }

    /// Store and keys, policy and places.
    pub fn set_up(&self, every_s: u64) -> Result<(), Failure> {
        let mut init = Command::new(&self.farsite);
        init.arg("init").arg(self.folder.join("replica"));
        init.args(["--single-recipient", "--yes", "--out"]).arg(self.folder.join("keys"));
        run(init, minutes(2), "see above")?;
        let written = self
            .own_state("north", "north", "")
            .and_then(|()| self.own_state("south", "south", &self.places()))
            // The operator sits at south.
            .and_then(|()| self.own_state("operator", "south", &self.places()))
            .and_then(|()| self.policy(every_s))
            .and_then(|()| self.passwords());
        written
            .map_err(|e| Failure::new(format!("writing the configuration: {e}"), "look at rights and space"))
    }

    /// The generated configuration with a state folder of its own, no web server, and what else is wanted.
    fn own_state(&self, whose: &str, site: &str, more: &str) -> std::io::Result<()> {
        let path = self.configuration(whose);
        let state = format!("state: {}", self.folder.join("state").join(site).display());
        let cloud = format!("  north: {{ cloud: north, region: {} }}", self.north.region());
        let mut text = String::new();
        for line in fs::read_to_string(&path)?.lines().filter(|line| !line.starts_with("web:")) {
            let line = match line {
                line if line.starts_with("state:") => &state,
                // Its own cloud, which volumes are asked of.
                line if whose == "north" && line.starts_with("  north: {}") => &cloud,
                line => line,
            };
            let _ = writeln!(text, "{line}");
        }
        fs::write(path, text + more)
    }

    fn policy(&self, every_s: u64) -> std::io::Result<()> {
        let north = &self.north;
        let schedule = if every_s >= 60 {
            format!("*/{} * * * *", every_s / 60)
        } else {
            format!("*/{every_s} * * * * *")
        };
        let text = format!(
            "group: cloud
site: north
to: [south]
level: application
schedule: \"{schedule}\"
rpo: {rpo}s
rto: 2m
items:
  - mariadb: {{ socket: {socket}, user: root, log: continuous }}
  - glance: {{ {images}, checksums: {{ mariadb: {{ socket: {socket}, user: root }} }} }}
  - cinder: {{ {volumes} }}
  - files: {{ name: keystone, paths: [{etc}/keystone/fernet-keys, {etc}/keystone/credential-keys] }}
retention: {{ last: 24 }}
",
            rpo = every_s * 2 + 30,
            socket = north.mariadb_socket().display(),
            images = match self.storage {
                Storage::Ceph => Self::pool(north, "images"),
                Storage::Share => format!("store: {}", north.images().display()),
            },
            volumes = match self.storage {
                Storage::Ceph => format!(
                    "backend: ceph, {}, select: {{ files: [\"volume-*\"] }}",
                    Self::pool(north, "volumes")
                ),
                Storage::Share => format!("backend: nfs, path: {}", north.share_mount().display()),
            },
            etc = north.etc().display(),
        );
        // Where the operator is, targets and level are read when north is gone.
        ["north", "operator"].iter().try_for_each(|whose| {
            fs::create_dir_all(self.folder.join("keys").join(whose).join("policies"))?;
            fs::write(self.policy_of(whose), &text)
        })
    }

    pub fn secret(&self, of: &str) -> PathBuf {
        self.folder.join("keys/south").join(format!("{of}.password"))
    }

    /// What south's services have in their configuration.
    fn passwords(&self) -> std::io::Result<()> {
        ["db", "service"].iter().try_for_each(|of| {
            let mut file =
                fs::File::options().write(true).create_new(true).mode(0o600).open(self.secret(of))?;
            file.write_all(self.south.password(of).as_bytes())
        })
    }

    fn places(&self) -> String {
        let (north, south) = (&self.north, &self.south);
        let lab =
            |words: &str| format!("{} lab {words} --folder {}", self.xtask.display(), south.lab().display());
        let (db, service) = (self.secret("db"), self.secret("service"));
        format!(
            "
places:
  cloud:
    mariadb:
      datadir: {data}
      socket: {socket}
      port: {port}
      server-args: [--bind-address={address}, --user=root, --server-id=201, --gtid-domain-id=2, --log-bin=binlog,
        --binlog-format=ROW, --sync-binlog=1, --performance-schema=OFF, --max-connect-errors=4294967295, --skip-name-resolve]
    glance: {{ {images_place} }}
    cinder: {{ {volumes_place} }}
    files: {{ path: {files} }}
    rewrite:
      regions: {{ {old_region}: {new_region} }}
      urls: {{ \"http://{old_address}:\": \"http://{address}:\" }}
      hosts: {{ {old_host}: {new_host} }}
      exports: {{ \"{old_share}\": \"{new_share}\" }}
      paths: {{ \"{old_images}\": \"{images}\" }}
{clusters}      files: {{ {keystone}/fernet-keys: {new_keystone}/fernet-keys, {keystone}/credential-keys: {new_keystone}/credential-keys }}
      database-passwords: {{ keystone: \"file:{db}\", glance: \"file:{db}\", cinder: \"file:{db}\" }}
      service-passwords: {{ glance: \"file:{service}\", cinder: \"file:{service}\" }}
    variables:
      standby_check: \"{check_standby}\"
      standby_stop: \"{stop}\"
      standby_start: \"{start_all}\"
      configuration: \"{etc}\"
      credential_keys: \"{{{{ place.files }}}}{keystone}/credential-keys\"
      fernet_keys: \"{{{{ place.files }}}}{keystone}/fernet-keys\"
      service_start: \"{start}\"
      service_stop: \"{stop_services}\"
      service_status: \"{status}\"
      service_url: \"{url}\"
{of_drills}",
            data = south.below("mariadb").display(),
            socket = south.mariadb_socket().display(),
            port = site::MARIADB.behind,
            address = south.address(),
            old_address = north.address(),
            images = south.images().display(),
            old_images = north.images().display(),
            images_place = match self.storage {
                Storage::Ceph => Self::pool(south, "images"),
                Storage::Share => format!("path: {}", south.images().display()),
            },
            volumes_place = match self.storage {
                Storage::Ceph => Self::pool(south, "volumes"),
                Storage::Share => format!("path: {}", south.share_mount().display()),
            },
            clusters = match self.storage {
                Storage::Ceph => format!("      clusters: {{ {}: {} }}\n", north.ceph_fsid(), south.ceph_fsid()),
                Storage::Share => String::new(),
            },
            // A drill restores into files: services on pools cannot serve those.
            of_drills = match self.storage {
                Storage::Ceph => String::new(),
                Storage::Share => self.of_drills(),
            },
            files = south.below("carried").display(),
            old_region = north.region(),
            new_region = south.region(),
            old_host = north.cinder_host(),
            new_host = south.cinder_host(),
            old_share = north.share(),
            new_share = south.share(),
            db = db.display(),
            service = service.display(),
            // What a promotion needs and does not start itself.
            check_standby = lab("status south haproxy rabbitmq"),
            stop = lab("stop south mariadb memcached keystone glance cinder-api cinder-scheduler cinder-volume"),
            start_all = lab("up south"),
            start = lab("start south memcached keystone glance cinder-api cinder-scheduler cinder-volume"),
            stop_services = lab("stop south keystone glance cinder-api cinder-scheduler cinder-volume"),
            status = lab("status south keystone glance cinder-api cinder-scheduler cinder-volume"),
            url = south.url(site::KEYSTONE, "/v3"),
            etc = south.etc().display(),
            keystone = north.etc().join("keystone").display(),
            new_keystone = south.etc().join("keystone").display(),
        )
    }

    /// Variables of drills: south's services once more, on what a drill has restored.
    fn of_drills(&self) -> String {
        let (north, south) = (&self.north, &self.south);
        let drill = format!("{} lab drill", self.xtask.display());
        let drill_folder = "--folder {{ place.folder }}/lab";
        format!(
            "      drill_service_start: \"{drill} start {drill_folder} --socket {{{{ place.mariadb.socket }}}} --images {{{{ place.glance }}}} --share {{{{ place.cinder }}}} --keys {{{{ place.files }}}}{keystone}\"
      drill_service_status: \"{drill} status {drill_folder}\"
      drill_service_stop: \"{drill} stop {drill_folder}\"
      drill_service_check: \"{drill} run {drill_folder} env PYTHONDONTWRITEBYTECODE=1 AUTH_URL={url} REGION={region} ADMIN_PASSWORD={password} {python} {check}\"
",
            keystone = north.etc().join("keystone").display(),
            url = south.url(site::KEYSTONE, "/v3"),
            region = south.region(),
            password = north.password("admin"),
            python = self.python.display(),
            check = self.scripts.join("drill_check.py").display(),
        )
    }
}
