//! Where a cloud's Keystone answers, as far as reaching it needs.

use std::fmt;
use std::str::FromStr;

/// A Keystone address. What stands in it before an `@`, or after a `?` or `#`, may be secret and is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthUrl {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// Why a text is not a Keystone address. Never quotes the text: a password may stand in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuthUrl {
    #[error("it does not start with http:// or https://")]
    Scheme,
    #[error("it names no host, or one with characters that no host name has")]
    Host,
    #[error("its port is not a number from 1 to 65535")]
    Port,
}

impl AuthUrl {
    /// A name or an address; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }
    /// The port that the text names, or the scheme's own (80, 443).
    pub fn port(&self) -> u16 {
        self.port
    }
    pub fn is_tls(&self) -> bool {
        self.tls
    }
    /// Where version 3 of the API begins. An address may name it, another version, or none.
    pub fn identity_v3(&self) -> String {
        let text = self.to_string();
        let text = text.trim_end_matches('/');
        let unversioned = text.strip_suffix("/v3").or_else(|| text.strip_suffix("/v2.0")).unwrap_or(text);
        format!("{unversioned}/v3")
    }
}

impl FromStr for AuthUrl {
    type Err = InvalidAuthUrl;
    fn from_str(text: &str) -> Result<Self, InvalidAuthUrl> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(InvalidAuthUrl::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(InvalidAuthUrl::Scheme),
        };
        let rest = rest.split(['?', '#']).next().unwrap_or(rest);
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(InvalidAuthUrl::Host)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| InvalidAuthUrl::Host)?;
                match port.strip_prefix(':') {
                    Some(port) => (host, port),
                    None if port.is_empty() => (host, ""),
                    None => return Err(InvalidAuthUrl::Host),
                }
            }
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(allowed) {
            return Err(InvalidAuthUrl::Host);
        }
        let port = match port {
            "" if tls => 443,
            "" => 80,
            digits => digits.parse().ok().filter(|port| *port > 0).ok_or(InvalidAuthUrl::Port)?,
        };
        Ok(Self { tls, host: host.to_owned(), port, path: path.to_owned() })
    }
}
impl fmt::Display for AuthUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}{}", self.host, self.port, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_found_in_every_usual_form() {
        for (text, shown, host, port) in [
            (
                "https://keystone.example.org:5000/v3",
                "https://keystone.example.org:5000/v3",
                "keystone.example.org",
                5000,
            ),
            (
                "https://keystone.example.org/identity",
                "https://keystone.example.org:443/identity",
                "keystone.example.org",
                443,
            ),
            ("HTTP://10.0.0.1", "http://10.0.0.1:80", "10.0.0.1", 80),
            ("http://[fd00::5]:5000/v3", "http://[fd00::5]:5000/v3", "fd00::5", 5000),
            ("https://[fd00::5]", "https://[fd00::5]:443", "fd00::5", 443),
        ] {
            let url: AuthUrl = text.parse().unwrap();
            assert_eq!((url.to_string().as_str(), url.host(), url.port()), (shown, host, port));
        }
    }

    #[test]
    fn version_3_is_asked_whatever_the_address_names() {
        for (text, v3) in [
            ("http://keystone:5000", "http://keystone:5000/v3"),
            ("http://keystone:5000/v3/", "http://keystone:5000/v3"),
            ("http://keystone:5000/v2.0", "http://keystone:5000/v3"),
            ("http://keystone/identity", "http://keystone:80/identity/v3"),
        ] {
            assert_eq!(text.parse::<AuthUrl>().unwrap().identity_v3(), v3);
        }
    }

    #[test]
    fn what_may_be_secret_in_an_address_is_dropped() {
        let url: AuthUrl = "https://admin:hunter2@keystone:5000/v3?token=hunter2#hunter2".parse().unwrap();
        assert_eq!(url.to_string(), "https://keystone:5000/v3");
        assert!(!format!("{url:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, why) in [
            ("keystone:5000/v3", InvalidAuthUrl::Scheme),
            ("ftp://keystone", InvalidAuthUrl::Scheme),
            ("https://", InvalidAuthUrl::Host),
            ("https:///v3", InvalidAuthUrl::Host),
            ("https://key stone/", InvalidAuthUrl::Host),
            ("http://[keystone]:5000", InvalidAuthUrl::Host),
            ("http://[fd00::5]5000", InvalidAuthUrl::Host),
            ("http://keystone:0", InvalidAuthUrl::Port),
            ("http://keystone:65536", InvalidAuthUrl::Port),
            ("http://keystone:http", InvalidAuthUrl::Port),
        ] {
            assert_eq!(text.parse::<AuthUrl>(), Err(why), "{text}");
        }
    }
}
