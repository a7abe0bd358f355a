//! Farsite's own account on a restored server: a data directory comes in; an account goes out that works whatever
//! accounts and passwords the restored `mysql` schema holds. The server makes it from an init file when it starts:
//! `farsite_local`, from this host's socket only, with a random password that stands in a file of mode 0600 beside the
//! data. (MariaDB 10.11 has no `unix_socket` accounts under another name than the user's own, and that name may be taken
//! by an account of the source.) What must hold: the password is in no argument, log or binary log.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use farsite_model::secret::Secret;

use super::server::hex;

pub(super) const USER: &str = "farsite_local";
const PASSWORD_FILE: &str = ".farsite-local";
const INIT_FILE: &str = ".farsite-init.sql";

/// Removes the account; the server's own log is not told.
pub(super) const DROP: [&str; 2] =
    ["SET SESSION sql_log_bin = 0", "DROP USER IF EXISTS 'farsite_local'@'localhost'"];

/// Writes a new password and the init file that makes the account with it; the init file's path goes out.
pub(super) fn prepare(datadir: &Path) -> io::Result<PathBuf> {
    let hex = hex(&crate::random::bytes::<24>()?);
    // A letter of each kind: the restored server may have a plugin that refuses weaker ones.
    let password = format!("Fs_{hex}");
    write(datadir, PASSWORD_FILE, &password)?;
    // Init files hold one statement a line.
    let statements = format!(
        "SET SESSION sql_log_bin = 0;\n\
         CREATE OR REPLACE USER '{USER}'@'localhost' IDENTIFIED BY '{password}';\n\
         GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'localhost' WITH GRANT OPTION;\n"
    );
    write(datadir, INIT_FILE, &statements)?;
    Ok(datadir.join(INIT_FILE))
}

/// The password that the running server was started with.
pub(super) fn password(datadir: &Path) -> io::Result<Secret> {
    fs::read_to_string(datadir.join(PASSWORD_FILE)).map(Secret::new)
}

/// Removes both files.
pub(super) fn forget(datadir: &Path) -> io::Result<()> {
    for name in [PASSWORD_FILE, INIT_FILE] {
        match fs::remove_file(datadir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// A fresh file that only the directory's owner can read: the server runs as that user.
fn write(datadir: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = datadir.join(name);
    let owner = fs::metadata(datadir)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_a_new_password_that_only_its_owner_reads() {
        let dir = tempfile::tempdir().unwrap();
        let init = prepare(dir.path()).unwrap();
        let first = password(dir.path()).unwrap();
        assert!(fs::read_to_string(&init).unwrap().contains(first.expose()));
        for name in [PASSWORD_FILE, INIT_FILE] {
            assert_eq!(dir.path().join(name).metadata().unwrap().mode() & 0o777, 0o600);
        }
        prepare(dir.path()).unwrap();
        assert!(password(dir.path()).unwrap() != first);
        forget(dir.path()).unwrap();
        forget(dir.path()).unwrap();
        assert!(password(dir.path()).is_err() && !init.exists());
    }
}
