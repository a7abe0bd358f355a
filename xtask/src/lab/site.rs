//! What a site of the lab is called, and where everything of it lies. The two sites differ in every name and password
//! on purpose: a failover has to show which of them travel inside the databases and which stay where they are.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Linux keeps 108 bytes for the path of a Unix socket, its closing zero included.
const SOCKET_PATH_BYTES: usize = 107;
/// HAProxy binds its socket under a name with `.PID.tmp` behind, and renames it.
const HAPROXY_SUFFIX_BYTES: usize = 13;

/// Behind HAProxy a service listens on the same address, at its ordinary port and ten thousand.
pub const KEYSTONE: Door = Door { front: 5000, behind: 15000 };
pub const GLANCE: Door = Door { front: 9292, behind: 19292 };
pub const CINDER: Door = Door { front: 8776, behind: 18776 };
pub const MARIADB: Door = Door { front: 3306, behind: 13306 };
pub const RABBITMQ: Door = Door { front: 5672, behind: 15672 };
pub const MEMCACHED_PORT: u16 = 11211;
pub const CEPH_MONITOR_PORT: u16 = 6789;
/// Below a site's folder: says that the site has a Ceph cluster.
pub const CEPH_MARK: &str = ".ceph";

/// The TCP ports of one service.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// HAProxy's: the one that clients and the other services know.
    pub front: u16,
    /// The service's own.
    pub behind: u16,
}

/// One site of the lab below one folder.
#[derive(Clone, Debug)]
pub struct Site {
    pub name: &'static str,
    /// 1 or 2: part of the address, of MariaDB's server id and of its GTID domain.
    pub number: u8,
    /// The folder that holds both sites.
    lab: PathBuf,
    /// Where a database that somebody else runs answers, in place of the site's own.
    database: Option<PathBuf>,
}

pub const NAMES: [&str; 2] = ["north", "south"];

impl Site {
    /// The site of that name, or `None` where there is no such site. `lab` is absolute.
    pub fn named(name: &str, lab: &Path) -> Option<Self> {
        let index = NAMES.iter().position(|known| *known == name)?;
        Some(Self { name: NAMES[index], number: index as u8 + 1, lab: lab.to_path_buf(), database: None })
    }

    /// The same site on a database that answers at this socket.
    pub fn on_database(mut self, socket: &Path) -> Self {
        self.database = Some(socket.to_path_buf());
        self
    }

    /// The database as HAProxy's configuration names it.
    pub fn mariadb_server(&self) -> String {
        match &self.database {
            Some(socket) => format!("unix@{}", socket.display()),
            None => format!("{}:{}", self.address(), MARIADB.behind),
        }
    }

    pub fn both(lab: &Path) -> Vec<Self> {
        NAMES.iter().filter_map(|name| Self::named(name, lab)).collect()
    }

    /// All of 127.0.0.0/8 is this machine; each site has one address of it to itself.
    pub fn address(&self) -> String {
        format!("127.20.{}.1", self.number)
    }

    pub fn region(&self) -> &'static str {
        if self.number == 1 { "RegionNorth" } else { "RegionSouth" }
    }

    /// `north-admin-pass` and so on. It is a lab: nothing else has these passwords.
    pub fn password(&self, of: &str) -> String {
        format!("{}-{of}-pass", self.name)
    }

    /// Cinder's `host`.
    pub fn cinder_host(&self) -> String {
        format!("ctl-{}", self.name)
    }

    pub fn has_ceph(&self) -> bool {
        self.below(CEPH_MARK).exists()
    }

    pub fn ceph_conf(&self) -> PathBuf {
        self.etc().join("ceph/ceph.conf")
    }

    /// The cluster's own name, which Glance writes into the locations of its images.
    pub fn ceph_fsid(&self) -> String {
        format!("6c616221-0000-4000-8000-00000000000{}", self.number)
    }

    /// os-brick takes a cluster's keyring by the cluster's name, out of `/etc/ceph` and from nowhere else. No other lab of this
    /// machine has the same name.
    pub fn ceph_name(&self) -> String {
        format!("lab-{}-{}", tag(&self.lab), self.name)
    }

    /// A link to the site's own keyring.
    pub fn ceph_keyring_link(&self) -> PathBuf {
        Path::new("/etc/ceph").join(format!("{}.client.admin.keyring", self.ceph_name()))
    }

    pub fn ceph_osd(&self) -> String {
        format!("6c616222-0000-4000-8000-00000000000{}", self.number)
    }

    /// The share as Cinder names it, in its configuration and in each volume's row.
    pub fn share(&self) -> String {
        format!("nfs.{}.lab:/export/cinder", self.name)
    }

    /// os-brick mounts a share below a folder that is named by the MD5 of the share's name.
    fn share_md5(&self) -> &'static str {
        if self.number == 1 { "0a582f994e78d43aa03c2c27f3e76fbc" } else { "c9de4d8d6b7c174df9f1bd8c61080c63" }
    }

    /// Erlang's port mapper always listens on 127.0.0.1 too, whatever address it is given; hence a port for each site.
    pub fn epmd_port(&self) -> u16 {
        4369 + 10_000 * u16::from(self.number)
    }

    /// Where Erlang's nodes talk to each other; the node is called `…@localhost`, so it is on 127.0.0.1 too.
    pub fn rabbitmq_node_port(&self) -> u16 {
        5673 + 10_000 * u16::from(self.number)
    }

    pub fn rabbitmq_node(&self) -> String {
        format!("rabbit-{}@localhost", self.name)
    }

    pub fn lab(&self) -> &Path {
        &self.lab
    }

    pub fn folder(&self) -> PathBuf {
        self.lab.join(self.name)
    }

    pub fn below(&self, path: &str) -> PathBuf {
        self.folder().join(path)
    }

    pub fn run(&self) -> PathBuf {
        self.below("run")
    }

    pub fn log(&self) -> PathBuf {
        self.below("log")
    }

    pub fn etc(&self) -> PathBuf {
        self.below("etc")
    }

    pub fn mariadb_socket(&self) -> PathBuf {
        self.run().join("mariadb.sock")
    }

    pub fn haproxy_socket(&self) -> PathBuf {
        self.run().join("haproxy.sock")
    }

    /// Glance's file store.
    pub fn images(&self) -> PathBuf {
        self.below("glance/images")
    }

    /// The loop file that the filer keeps its file system in.
    pub fn pool_image(&self) -> PathBuf {
        self.below("nfs/pool.img")
    }

    /// Where the filer's file system is mounted.
    pub fn pool(&self) -> PathBuf {
        self.below("nfs/pool")
    }

    /// Cinder's `nfs_mount_point_base`.
    pub fn mounts(&self) -> PathBuf {
        self.below("cinder/mnt")
    }

    /// Where Cinder looks for the share's files.
    pub fn share_mount(&self) -> PathBuf {
        self.mounts().join(self.share_md5())
    }

    pub fn url(&self, door: Door, path: &str) -> String {
        format!("http://{}:{}{path}", self.address(), door.front)
    }
}

/// Refuses a path that a configuration file or a command line would misread.
pub fn check_characters(path: &Path, hint: &str) -> Result<(), Failure> {
    let text = path.to_string_lossy();
    let fits = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    match text.chars().find(|c| !fits(*c)) {
        None => Ok(()),
        Some(odd) => Err(Failure::new(
            format!(
                "{text}: a folder of the lab must not have `{odd}` in its path: it is written into configuration files"
            ),
            hint,
        )),
    }
}

/// Refuses a lab folder that a configuration file would misread, or in which a socket's path would be too long.
pub fn check_folder(lab: &Path) -> Result<(), Failure> {
    let hint = "name another folder with --folder, such as /var/tmp/lab";
    check_characters(lab, hint)?;
    for site in Site::both(lab) {
        for (socket, more) in [(site.haproxy_socket(), HAPROXY_SUFFIX_BYTES), (site.mariadb_socket(), 0)] {
            let bytes = socket.as_os_str().len() + more;
            if bytes > SOCKET_PATH_BYTES {
                return Err(Failure::new(
                    format!(
                        "{} would need {bytes} bytes, and the path of a Unix socket has at most {SOCKET_PATH_BYTES}",
                        socket.display()
                    ),
                    hint,
                ));
            }
        }
    }
    Ok(())
}

/// A short name of a lab's folder (FNV-1a, which is enough to tell a handful of them apart).
pub fn tag(lab: &Path) -> String {
    let hash = lab.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:08x}", hash & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_two_sites_share_no_address_name_or_password() {
        let [north, south] = Site::both(Path::new("/lab")).try_into().unwrap();
        assert_eq!((north.address().as_str(), south.address().as_str()), ("127.20.1.1", "127.20.2.1"));
        assert_eq!(north.password("admin"), "north-admin-pass");
        for of in [
            Site::address,
            Site::cinder_host,
            Site::share,
            Site::rabbitmq_node,
            Site::ceph_fsid,
            Site::ceph_osd,
        ] {
            assert_ne!(of(&north), of(&south));
        }
        assert_ne!(north.region(), south.region());
        // These two are on 127.0.0.1 at both sites.
        assert_ne!(north.epmd_port(), south.epmd_port());
        assert_ne!(north.rabbitmq_node_port(), south.rabbitmq_node_port());
    }

    #[test]
    fn the_share_is_mounted_where_os_brick_looks_for_it() {
        for site in Site::both(Path::new("/lab")) {
            let sum =
                Command::new("sh").args(["-c", "printf %s \"$0\" | md5sum", &site.share()]).output().unwrap();
            let sum = String::from_utf8(sum.stdout).unwrap();
            assert!(sum.starts_with(site.share_md5()), "{}: {sum}", site.name);
        }
    }

    #[test]
    fn a_folder_whose_sockets_would_have_too_long_paths_is_refused() {
        assert!(check_folder(Path::new("/var/tmp/lab")).is_ok());
        let long = Path::new("/var").join("x".repeat(90));
        let text = check_folder(&long).unwrap_err().to_string();
        assert!(text.contains("haproxy.sock") && text.contains("107") && text.contains("--folder"), "{text}");
    }

    #[test]
    fn a_folder_whose_name_a_configuration_file_would_misread_is_refused() {
        let text = check_folder(Path::new("/var/my lab")).unwrap_err().to_string();
        assert!(text.contains("` `"), "{text}");
    }
}
