//! Whether a service answers: each is asked in its own protocol, as far as that goes without logging in.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::process;
use super::services::{Service, Tools};
use super::site::{self, Door, Site};

const PATIENCE: Duration = Duration::from_secs(3);

/// `Ok` when the service itself answers; otherwise why it is not said to.
pub fn service(site: &Site, tools: &Tools, service: Service) -> Result<(), String> {
    match service {
        Service::Haproxy => haproxy(site),
        Service::Memcached => memcached(site),
        Service::Epmd => epmd(site),
        Service::Mariadb => mariadb(site, site::MARIADB.behind),
        Service::Rabbitmq => amqp(site, site::RABBITMQ.behind),
        Service::Keystone => http(site, site::KEYSTONE.behind),
        Service::Glance => http(site, site::GLANCE.behind),
        Service::CinderApi => http(site, site::CINDER.behind),
        Service::CinderScheduler | Service::CinderVolume => heartbeat(site, tools, service),
        Service::CephMon => ceph(site, tools, &["mon", "stat"], "quorum 0"),
        Service::CephMgr => ceph(site, tools, &["mgr", "stat"], "\"available\": true"),
        Service::CephOsd => ceph(site, tools, &["osd", "stat"], "1 up"),
    }
}

/// `Ok` when the service answers to those who know only HAProxy's address.
pub fn through_haproxy(site: &Site, service: Service) -> Result<(), String> {
    let Some(door) = door(service) else { return Ok(()) };
    let answer = match service {
        Service::Mariadb => mariadb(site, door.front),
        Service::Rabbitmq => amqp(site, door.front),
        _ => http(site, door.front),
    };
    answer.map_err(|why| format!("HAProxy at port {}: {why}", door.front))
}

fn door(service: Service) -> Option<Door> {
    match service {
        Service::Keystone => Some(site::KEYSTONE),
        Service::Glance => Some(site::GLANCE),
        Service::CinderApi => Some(site::CINDER),
        Service::Mariadb => Some(site::MARIADB),
        Service::Rabbitmq => Some(site::RABBITMQ),
        _ => None,
    }
}

fn connect(address: &str, port: u16) -> Result<TcpStream, String> {
    let place: SocketAddr =
        format!("{address}:{port}").parse().map_err(|error| format!("{address}:{port}: {error}"))?;
    let stream = TcpStream::connect_timeout(&place, PATIENCE).map_err(|error| format!("{place}: {error}"))?;
    let limited =
        stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    limited.map(|()| stream).map_err(|error| format!("{place}: {error}"))
}

/// Sends `question` and returns the first `length` bytes of the answer.
fn ask(address: &str, port: u16, question: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let mut stream = connect(address, port)?;
    let mut answer = vec![0; length];
    let told = stream.write_all(question).and_then(|()| stream.read_exact(&mut answer));
    told.map(|()| answer).map_err(|error| format!("{address}:{port} does not answer: {error}"))
}

/// The health check of oslo.middleware, which needs neither a token nor the database. The answer is read to its end:
/// otherwise the service writes an exception into its log.
fn http(site: &Site, port: u16) -> Result<(), String> {
    let address = site.address();
    let question =
        format!("GET /healthcheck HTTP/1.0\r\nHost: {address}:{port}\r\nConnection: close\r\n\r\n");
    let mut stream = connect(&address, port)?;
    let mut answer = Vec::new();
    let told = stream.write_all(question.as_bytes()).and_then(|()| stream.read_to_end(&mut answer));
    told.map_err(|error| format!("{address}:{port} does not answer: {error}"))?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some(status) => Err(format!("{address}:{port} answers {status}")),
        None => Err(format!("{address}:{port} closes the connection without an answer")),
    }
}

/// The server's greeting: three bytes of length, a sequence number, protocol version 10. In its place there may be an
/// error packet: 255, two bytes of a number, a text.
fn mariadb(site: &Site, port: u16) -> Result<(), String> {
    let mut stream = connect(&site.address(), port)?;
    let mut packet = [0; 512];
    let length = stream.read(&mut packet).map_err(|error| format!("port {port} does not answer: {error}"))?;
    match packet.get(4..length) {
        Some([10, ..]) => Ok(()),
        Some([255, _, _, text @ ..]) => Err(String::from_utf8_lossy(text).into_owned()),
        _ => Err(format!("port {port} sends no greeting of MariaDB")),
    }
}

/// AMQP 0-9-1: after the protocol header the server begins with a method frame on channel 0.
fn amqp(site: &Site, port: u16) -> Result<(), String> {
    let frame = ask(&site.address(), port, b"AMQP\x00\x00\x09\x01", 3)?;
    if frame == [1, 0, 0] { Ok(()) } else { Err(format!("this is not AMQP 0-9-1: {frame:?}")) }
}

/// What the cluster says of itself.
fn ceph(site: &Site, tools: &Tools, words: &[&str], good: &str) -> Result<(), String> {
    connect(&site.address(), site::CEPH_MONITOR_PORT)?;
    let mut command = process::client(site, "ceph", &tools.path);
    command.args(["--connect-timeout", "3", "--conf"]).arg(site.ceph_conf()).args(words);
    let output = command.output().map_err(|error| format!("ceph(8) could not be started: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains(good) {
        Ok(())
    } else {
        Err(format!("`ceph {}` says {:?}", words.join(" "), said.trim()))
    }
}

fn memcached(site: &Site) -> Result<(), String> {
    ask(&site.address(), site::MEMCACHED_PORT, b"version\r\n", 7).map(drop)
}

/// NAMES_REQ; the answer begins with the mapper's own port (Erlang distribution protocol).
fn epmd(site: &Site) -> Result<(), String> {
    ask("127.0.0.1", site.epmd_port(), b"\x00\x01n", 4).map(drop)
}

fn haproxy(site: &Site) -> Result<(), String> {
    let socket = site.haproxy_socket();
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"show info\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) if answer.contains("Uptime_sec") => Ok(()),
        Ok(answer) => Err(format!("{} answers {answer:?}", socket.display())),
        Err(error) => Err(format!("{}: {error}", socket.display())),
    }
}

/// Whether the service has reported lately: within three of its intervals (2 s, cinder.conf).
fn heartbeat(site: &Site, tools: &Tools, service: Service) -> Result<(), String> {
    match reports(site, tools, service)? {
        Some(Reports { seconds_ago: 0..=6, .. }) => Ok(()),
        Some(reports) => Err(format!("its last report to the database is {} s old", reports.seconds_ago)),
        None => Err("it has never reported to the database".to_owned()),
    }
}

/// What a service without a port has told the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reports {
    /// Grows with every report, and with nothing else: a service that starts updates the time, too, long before it can
    /// do anything.
    pub count: u64,
    pub seconds_ago: u64,
}

/// Cinder's services without a port report to the database, and do so only when their driver works and they can be
/// reached through RabbitMQ; `None` is a service that never has. The database is asked with what stands in cinder.conf, as the service itself does: a
/// failover may have changed it.
pub fn reports(site: &Site, tools: &Tools, service: Service) -> Result<Option<Reports>, String> {
    let file = site.etc().join("cinder/cinder.conf");
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let setting = |key| setting(&text, key).ok_or(format!("{} has no `{key}`", file.display()));
    let host = setting("host")?;
    let url = setting("connection")?;
    let database =
        Database::parse(url).ok_or(format!("{}: `connection` is not understood", file.display()))?;
    let hosts = match service {
        Service::CinderVolume if site.has_ceph() => vec![format!("{host}@nfs"), format!("{host}@ceph")],
        Service::CinderVolume => vec![format!("{host}@nfs")],
        _ => vec![host.to_owned()],
    };
    // The one that lags behind; nothing where one has never reported.
    let question = format!(
        "SELECT MIN(report_count), MAX(TIMESTAMPDIFF(SECOND, IFNULL(updated_at, created_at), UTC_TIMESTAMP())) FROM services \
         WHERE deleted = 0 AND `binary` = '{}' AND host IN ('{}') HAVING COUNT(*) = {}",
        service.name(),
        hosts.join("', '"),
        hosts.len()
    );
    let mut client = process::client(site, "mariadb", &tools.path);
    client.args(["--no-defaults", "--connect-timeout=3", "-NB", "-h", database.host, "-P", database.port]);
    client.args(["-u", database.user, "-D", database.name, "-e", &question]);
    client.env("MYSQL_PWD", database.password);
    let output = client.output().map_err(|error| format!("mariadb could not be started: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(parse_reports(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_reports(row: &str) -> Option<Reports> {
    let (count, seconds_ago) = row.trim().split_once('\t')?;
    Some(Reports { count: count.parse().ok()?, seconds_ago: seconds_ago.parse().ok()? })
}

/// The first value of `key` in an oslo.config file, whatever its section.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Database<'a> {
    user: &'a str,
    password: &'a str,
    host: &'a str,
    port: &'a str,
    name: &'a str,
}

impl<'a> Database<'a> {
    /// Out of `mysql+pymysql://USER:PASSWORD@HOST:PORT/NAME?…`.
    fn parse(url: &'a str) -> Option<Self> {
        let (who, rest) = url.split_once("://")?.1.rsplit_once('@')?;
        let (user, password) = who.split_once(':')?;
        let (place, name) = rest.split_once('/')?;
        let (host, port) = place.split_once(':').unwrap_or((place, "3306"));
        let name = name.split_once('?').map_or(name, |(name, _)| name);
        Some(Self { user, password, host, port, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_is_asked_with_what_stands_in_the_services_configuration() {
        let text = "[DEFAULT]\nhost = ctl-north\n[database]\nconnection = mysql+pymysql://cinder:p@127.20.1.1:3306/cinder?charset=utf8mb4\n";
        assert_eq!(setting(text, "host"), Some("ctl-north"));
        let database = Database::parse(setting(text, "connection").unwrap()).unwrap();
        assert_eq!(
            database,
            Database { user: "cinder", password: "p", host: "127.20.1.1", port: "3306", name: "cinder" }
        );
        assert_eq!(Database::parse("sqlite:///x"), None);
    }

    #[test]
    fn a_row_of_the_services_table_is_read_and_none_is_no_report() {
        assert_eq!(parse_reports("17\t3\n"), Some(Reports { count: 17, seconds_ago: 3 }));
        assert_eq!(parse_reports(""), None);
    }

    #[test]
    fn a_port_that_nobody_listens_at_does_not_answer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert!(ask("127.0.0.1", port, b"", 1).unwrap_err().contains(&port.to_string()));
    }
}
