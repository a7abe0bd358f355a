//! The services of a site: how each is started, where it listens, and where it says what went wrong.

use std::path::Path;
use std::process::Command;

use super::process;
use super::site::{self, Site};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Haproxy,
    Memcached,
    Epmd,
    Mariadb,
    Rabbitmq,
    Keystone,
    Glance,
    CinderApi,
    CinderScheduler,
    CinderVolume,
    CephMon,
    CephMgr,
    CephOsd,
}

use Service::{
    CephMgr, CephMon, CephOsd, CinderApi, CinderScheduler, CinderVolume, Epmd, Glance, Haproxy, Keystone,
    Mariadb, Memcached, Rabbitmq,
};

/// In the order in which they are told of.
pub const ALL: [Service; 13] = [
    Haproxy,
    Memcached,
    Epmd,
    Mariadb,
    Rabbitmq,
    CephMon,
    CephMgr,
    CephOsd,
    Keystone,
    Glance,
    CinderApi,
    CinderScheduler,
    CinderVolume,
];
/// Only where a site has a cluster.
pub const CEPH: [Service; 3] = [CephMon, CephMgr, CephOsd];
/// What a failover stops at one site and starts at the other. Keystone is first: others ask it when they are asked.
pub const OPENSTACK: [Service; 5] = [Keystone, Glance, CinderApi, CinderScheduler, CinderVolume];
/// What those need. The port mapper must be there before RabbitMQ, which would start one of its own.
pub const BELOW: [Service; 5] = [Epmd, Mariadb, Rabbitmq, Memcached, Haproxy];

/// The services that a site has.
pub fn of(site: &Site) -> Vec<Service> {
    ALL.into_iter().filter(|service| site.has_ceph() || !CEPH.contains(service)).collect()
}

impl Service {
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|service| service.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Haproxy => "haproxy",
            Memcached => "memcached",
            Epmd => "epmd",
            Mariadb => "mariadb",
            Rabbitmq => "rabbitmq",
            Keystone => "keystone",
            Glance => "glance",
            CinderApi => "cinder-api",
            CinderScheduler => "cinder-scheduler",
            CinderVolume => "cinder-volume",
            CephMon => "ceph-mon",
            CephMgr => "ceph-mgr",
            CephOsd => "ceph-osd",
        }
    }

    /// Where it listens, as (address, port).
    pub fn listens(self, site: &Site) -> Vec<(String, u16)> {
        let here = |ports: &[u16]| ports.iter().map(|port| (site.address(), *port)).collect();
        let loopback = |port: u16| ("127.0.0.1".to_owned(), port);
        match self {
            Haproxy => here(&[
                site::KEYSTONE.front,
                site::GLANCE.front,
                site::CINDER.front,
                site::MARIADB.front,
                site::RABBITMQ.front,
            ]),
            Memcached => here(&[site::MEMCACHED_PORT]),
            Epmd => vec![loopback(site.epmd_port())],
            Mariadb => here(&[site::MARIADB.behind]),
            Rabbitmq => vec![(site.address(), site::RABBITMQ.behind), loopback(site.rabbitmq_node_port())],
            Keystone => here(&[site::KEYSTONE.behind]),
            Glance => here(&[site::GLANCE.behind]),
            CinderApi => here(&[site::CINDER.behind]),
            CephMon => here(&[site::CEPH_MONITOR_PORT]),
            // At ports that it chooses itself.
            CinderScheduler | CinderVolume | CephMgr | CephOsd => Vec::new(),
        }
    }

    /// The logs below `log/`, the one that says most first.
    pub fn logs(self) -> &'static [&'static str] {
        match self {
            Haproxy => &["haproxy.out"],
            Memcached => &["memcached.out"],
            Epmd => &["epmd.out"],
            Mariadb => &["mariadb.out"],
            Rabbitmq => &["rabbitmq/rabbitmq.log", "rabbitmq.out"],
            Keystone => &["keystone.log", "keystone.out"],
            Glance => &["glance-api.log", "glance.out"],
            CinderApi => &["cinder-api.log", "cinder-api.out"],
            CinderScheduler => &["cinder-scheduler.log", "cinder-scheduler.out"],
            CinderVolume => &["cinder-volume.log", "cinder-volume.out"],
            CephMon => &["ceph-mon.out"],
            CephMgr => &["ceph-mgr.out"],
            CephOsd => &["ceph-osd.out"],
        }
    }

    pub fn command(self, site: &Site, tools: &Tools) -> Command {
        let etc = site.etc();
        let address = site.address();
        let start = |program: &str| process::command(site, self.name(), program, &tools.path);
        match self {
            Haproxy => {
                let mut command = start("haproxy");
                command.args(["-db", "-f"]).arg(etc.join("haproxy.cfg"));
                command
            }
            Memcached => {
                let mut command = start("memcached");
                command.args(["-u", "root", "-m", "64", "-U", "0", "-l", &address]);
                command.args(["-p", &site::MEMCACHED_PORT.to_string()]);
                command
            }
            Epmd => {
                let mut command = start("epmd");
                command.args(["-address", "127.0.0.1", "-port", &site.epmd_port().to_string()]);
                command
            }
            Mariadb => {
                let mut command = start("mariadbd");
                command.arg(format!("--defaults-file={}", etc.join("mariadb.cnf").display()));
                command
            }
            Rabbitmq => rabbitmq(start("/usr/lib/rabbitmq/bin/rabbitmq-server"), site),
            Keystone => {
                let mut command = self.wsgi(site, tools, site::KEYSTONE, "keystone.wsgi.api:application");
                command.env("OS_KEYSTONE_CONFIG_DIR", etc.join("keystone"));
                command
            }
            Glance => {
                let mut command = self.wsgi(site, tools, site::GLANCE, "glance.wsgi.api:application");
                command.env("OS_GLANCE_CONFIG_DIR", etc.join("glance"));
                command
            }
            CinderApi => {
                let mut command = self.wsgi(site, tools, site::CINDER, "cinder.wsgi.api:application");
                let arguments = self.cinder_arguments(site).join(" ");
                command.args(["--pyargv", &arguments]);
                command
            }
            CinderScheduler | CinderVolume => {
                let mut command = start(self.name());
                command.args(self.cinder_arguments(site));
                command
            }
            CephMon | CephMgr | CephOsd => {
                let mut command = start(self.name());
                let id = match self {
                    CephMon => "a",
                    CephMgr => "x",
                    _ => "0",
                };
                command.args(["-f", "-i", id, "--conf"]).arg(site.ceph_conf());
                command
            }
        }
    }

    fn cinder_arguments(self, site: &Site) -> [String; 4] {
        let path = |path: std::path::PathBuf| path.display().to_string();
        [
            "--config-file".to_owned(),
            path(site.etc().join("cinder/cinder.conf")),
            "--log-file".to_owned(),
            path(site.log().join(format!("{}.log", self.name()))),
        ]
    }

    /// One process with six threads under uwsgi. Requests are in HAProxy's log: here, only slow and failed ones, because
    /// the health checks would be most of it.
    fn wsgi(self, site: &Site, tools: &Tools, door: site::Door, module: &str) -> Command {
        let mut command = process::command(site, self.name(), "uwsgi", &tools.path);
        command.args(["--http-socket", &format!("{}:{}", site.address(), door.behind), "--module", module]);
        command.args(["--master", "--processes", "1", "--threads", "6", "--enable-threads", "--lazy-apps"]);
        command.args(["--thunder-lock", "--die-on-term", "--need-app", "--no-orphans"]);
        command.args(["--http-auto-chunked", "--http-chunked-input", "--buffer-size", "65535"]);
        // A client that has gone while the application was loading is no exception worth a place in its log.
        command.args(["--disable-write-exception", "--ignore-sigpipe"]);
        command.args(["--disable-logging", "--log-5xx", "--log-slow", "2000"]);
        // Requests under way are answered before the worker goes.
        command.args(["--hook-master-start", "unix_signal:15 gracefully_kill_them_all"]);
        command
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The Python environment.
    pub venv: std::path::PathBuf,
    /// PATH for everything of a site: the lab's stand-ins for `sudo` and `mount.nfs`, the environment, the system.
    pub path: String,
}

impl Tools {
    pub fn new(xtask_folder: &Path, venv: &Path) -> Self {
        let shim = xtask_folder.join("lab/shim");
        let system = "/usr/sbin:/usr/bin:/sbin:/bin";
        Self { venv: venv.to_path_buf(), path: format!("{}:{}/bin:{system}", shim.display(), venv.display()) }
    }
}

fn rabbitmq(mut command: Command, site: &Site) -> Command {
    let etc = site.etc().join("rabbitmq");
    let data = site.below("rabbit");
    command
        // The server's own script would otherwise stay as a parent, and start a second Erlang to stop the first one.
        // This makes the script become the server, which then takes SIGTERM itself.
        .env("RABBITMQ_ALLOW_INPUT", "1")
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-noinput +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}",
        )
        .env("HOME", &data)
        .env("ERL_EPMD_PORT", site.epmd_port().to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODENAME", site.rabbitmq_node())
        .env("RABBITMQ_DIST_PORT", site.rabbitmq_node_port().to_string())
        .env("RABBITMQ_CONFIG_FILE", etc.join("rabbitmq.conf"))
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", etc.join("enabled_plugins"))
        .env("RABBITMQ_MNESIA_BASE", data.join("mnesia"))
        .env("RABBITMQ_GENERATED_CONFIG_DIR", data.join("config"))
        .env("RABBITMQ_FEATURE_FLAGS_FILE", data.join("feature_flags"))
        .env("RABBITMQ_LOG_BASE", site.log().join("rabbitmq"))
        .env("RABBITMQ_LOGS", site.log().join("rabbitmq/rabbitmq.log"))
        .env("RABBITMQ_PID_FILE", site.run().join("rabbitmq.own-pid"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_services_of_the_lab_listen_at_the_same_place() {
        let mut places = Vec::new();
        for site in Site::both(Path::new("/lab")) {
            places.extend(ALL.iter().flat_map(|service| service.listens(&site)));
        }
        let count = places.len();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), count);
    }

    #[test]
    fn every_service_is_found_by_its_name_and_belongs_to_one_half() {
        for service in ALL {
            assert_eq!(Service::named(service.name()), Some(service));
            let is_below = BELOW.contains(&service) || CEPH.contains(&service);
            assert_ne!(OPENSTACK.contains(&service), is_below, "{service:?}");
        }
        assert_eq!(Service::named("nova"), None);
    }
}
