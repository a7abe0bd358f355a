//! Whether a service's ports are free, and who has one that is not.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use super::services::Service;
use super::site::Site;
use crate::failure::Failure;

/// An error that names the port and its owner, unless every port of the service can be had.
pub fn check_free(site: &Site, service: Service) -> Result<(), Failure> {
    for (address, port) in service.listens(site) {
        if let Err(error) = TcpListener::bind((address.as_str(), port)) {
            let owner = owner(&address, port).unwrap_or_else(|| "nobody that can be found has it".to_owned());
            return Err(Failure::new(
                format!(
                    "{}: {} needs {address}:{port}, which cannot be had: {error}; {owner}",
                    site.name,
                    service.name()
                ),
                "nothing was started there; end the program that has the port, then run this again",
            ));
        }
    }
    Ok(())
}

/// "process 123 (name) listens there".
fn owner(address: &str, port: u16) -> Option<String> {
    let tables = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let inodes: Vec<String> =
        tables.lines().filter_map(|line| listening_inode(line, address, port)).collect();
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let folder = entry.path();
        // Not /proc/self and its like.
        if entry.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        let files = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        if targets.any(|target| sockets.iter().any(|socket| target == Path::new(socket))) {
            let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            return Some(format!(
                "process {} ({}) listens there",
                entry.file_name().to_string_lossy(),
                name.trim()
            ));
        }
    }
    None
}

/// The socket's inode number when the line of /proc/net/tcp is a listener (state 0A) that has this place, or that port
/// at every address.
fn listening_inode(line: &str, address: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (bits, hex) = fields.get(1)?.split_once(':')?;
    // The address is printed as a number of the machine's byte order.
    let there = Ipv4Addr::from(u32::from_str_radix(bits, 16).ok()?.to_ne_bytes());
    let same = there.is_unspecified() || there.to_string() == address;
    let here = same && u16::from_str_radix(hex, 16) == Ok(port) && fields.get(3) == Some(&"0A");
    here.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_port_is_named() {
        let listener = TcpListener::bind("127.20.9.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = owner("127.20.9.1", port).unwrap();
        assert!(text.contains(&format!("process {} ", std::process::id())), "{text}");
        drop(listener);
        assert_eq!(owner("127.20.9.1", port), None);
    }

    #[test]
    fn a_line_of_the_kernels_table_is_read() {
        let line = "   0: 0101147F:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0";
        assert_eq!(listening_inode(line, "127.20.1.1", 15000).as_deref(), Some("4242"));
        assert_eq!(listening_inode(line, "127.20.1.1", 15001), None);
        assert_eq!(listening_inode(line, "127.20.2.1", 15000), None);
        assert_eq!(listening_inode(&line.replace(" 0A ", " 01 "), "127.20.1.1", 15000), None);
        let everywhere = line.replace("0101147F", "00000000");
        assert_eq!(listening_inode(&everywhere, "127.20.2.1", 15000).as_deref(), Some("4242"));
    }
}
