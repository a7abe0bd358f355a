//! How services log in by their configuration: files in the way of OpenStack (oslo.config) come in; accounts of the database and
//! users in Keystone go out, with the passwords that stand there.

use std::path::{Path, PathBuf};

use farsite_model::secret::Secret;
use farsite_sources::mariadb::account::Door;

use crate::site::each_text;

/// Ports of a URL that names none.
const MARIADB_PORT: u16 = 3306;

/// A login that a file states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// `/etc/glance/glance-api.conf:12`
    pub place: String,
    pub name: String,
    pub password: Stated,
    /// Where the database is; `None`: the login is one in Keystone.
    pub door: Option<Door>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stated {
    Known(Secret),
    /// It is put together from other options, and not known here.
    Elsewhere,
}

/// All logins in the files below these paths.
pub fn logins(paths: &[PathBuf]) -> Result<Vec<Login>, String> {
    let mut found = Vec::new();
    for path in paths {
        each_text(path, "looking for logins in", &mut |file, text| {
            if file == path || is_read_by_services(file.strip_prefix(path).unwrap_or(file)) {
                read(file, text, &mut found);
            }
        })?;
    }
    Ok(found)
}

/// Copies that people and packages leave beside a configuration (`.bak`, `.dpkg-dist`, what begins with a dot) are nobody's logins.
fn is_read_by_services(path: &Path) -> bool {
    let is_hidden = path.iter().any(|part| part.as_encoded_bytes().starts_with(b"."));
    !is_hidden && path.extension().is_some_and(|ending| ending == "conf" || ending == "ini")
}

/// A section's login in Keystone, as far as it was read.
#[derive(Default)]
struct Section {
    name: Option<String>,
    password: Option<(usize, Stated)>,
    speaks_to_keystone: bool,
}

impl Section {
    fn end(self, file: &Path, found: &mut Vec<Login>) {
        if let (Some(name), Some((line, password)), true) =
            (self.name, self.password, self.speaks_to_keystone)
        {
            found.push(Login { place: format!("{}:{line}", file.display()), name, password, door: None });
        }
    }
}

fn read(file: &Path, text: &str, found: &mut Vec<Login>) {
    let mut section = Section::default();
    for (number, line) in text.lines().enumerate() {
        // A line that begins with white space goes on with the one before: no login is written so.
        if line.starts_with(['#', ';', ' ', '\t']) {
            continue;
        }
        let line = line.trim_end();
        if line.starts_with('[') {
            std::mem::take(&mut section).end(file, found);
            section.speaks_to_keystone = line.starts_with("[keystone_authtoken]");
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = unquoted(value.trim());
        match key.trim() {
            "connection" | "slave_connection" | "sql_connection" => {
                if let Some((name, password, door)) = url(value) {
                    let place = format!("{}:{}", file.display(), number + 1);
                    found.push(Login { place, name, password, door: Some(door) });
                }
            }
            "username" | "admin_user" => section.name = Some(value.to_owned()),
            "password" | "admin_password" => {
                let stated =
                    if value.contains('$') { Stated::Elsewhere } else { Stated::Known(Secret::new(value)) };
                section.password = Some((number + 1, stated));
            }
            "auth_url" => section.speaks_to_keystone = true,
            _ => {}
        }
    }
    section.end(file, found);
}

fn unquoted(value: &str) -> &str {
    ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(value)
}

/// `mysql+pymysql://glance:…@db:3306/glance?charset=utf8`, as SQLAlchemy reads it: name and password are percent-encoded.
fn url(text: &str) -> Option<(String, Stated, Door)> {
    let (scheme, rest) = text.split_once("://")?;
    if !(scheme.starts_with("mysql") || scheme.starts_with("mariadb")) {
        return None;
    }
    let (login, rest) = rest.split_once('@')?;
    let (name, password) = login.split_once(':')?;
    let (address, behind) = rest.split_once(['/', '?']).unwrap_or((rest, ""));
    let socket = behind.split(['?', '&']).find_map(|option| option.strip_prefix("unix_socket="));
    let door = if let Some(path) = socket {
        Door::Socket(decoded(path)?.into())
    } else {
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (address, MARIADB_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Door::Tcp { host: if host.is_empty() { "localhost" } else { host }.to_owned(), port }
    };
    let password = match decoded(password) {
        Some(plain) if !password.contains('$') => Stated::Known(Secret::new(plain)),
        _ => Stated::Elsewhere,
    };
    Some((decoded(name)?, password, door))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
            u8::try_from(high * 16 + low).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> Stated {
        Stated::Known(Secret::new(text))
    }

    #[test]
    fn a_services_logins_are_read_from_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("glance-api.conf");
        std::fs::write(
            &file,
            "[DEFAULT]\n# connection = mysql://old:gone@x/y\n[database]\nconnection = mysql+pymysql://glance:p%40ss%2fword@10.0.0.5:3307/glance?charset=utf8\n\n[keystone_authtoken]\nusername = glance\npassword = \"a b\"\n[other]\nusername = x\npassword = y\n[service_user]\nauth_url = http://k\nusername = svc\npassword = $common\n",
        )
        .unwrap();
        std::fs::copy(&file, dir.path().join("glance-api.conf.bak")).unwrap();
        std::fs::create_dir(dir.path().join(".old")).unwrap();
        std::fs::copy(&file, dir.path().join(".old/x.conf")).unwrap();
        let found = logins(&[dir.path().to_owned()]).unwrap();
        let seen: Vec<(&str, &Stated)> = found.iter().map(|l| (l.name.as_str(), &l.password)).collect();
        assert_eq!(
            seen,
            [("glance", &known("p@ss/word")), ("glance", &known("a b")), ("svc", &Stated::Elsewhere)]
        );
        assert_eq!(found[0].door, Some(Door::Tcp { host: "10.0.0.5".into(), port: 3307 }));
        assert_eq!(found[0].place, format!("{}:4", file.display()));
        assert!(!format!("{found:?}").contains("p@ss"), "no password is shown");
    }

    #[test]
    fn a_url_may_name_a_socket_or_no_port() {
        let at = |text: &str| url(text).map(|(_, _, door)| door);
        assert_eq!(at("mysql://k:p@db/keystone"), Some(Door::Tcp { host: "db".into(), port: 3306 }));
        assert_eq!(
            at("mysql+pymysql://k:p@/keystone?charset=utf8&unix_socket=/run/m.sock"),
            Some(Door::Socket("/run/m.sock".into()))
        );
        assert_eq!(at("mysql://k:p@[::1]:3307/x"), Some(Door::Tcp { host: "::1".into(), port: 3307 }));
        assert_eq!(at("sqlite:////var/lib/x.db"), None);
    }
}
