//! One command at a time for each site: two at once would start and stop the same services.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// Kept as long as it is held; the kernel lets go of it when the process ends, however that is.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes `LAB/NAME.lock`, waiting up to `limit` for another command that has it, and saying so.
pub fn take(lab: &Path, name: &str, limit: Duration) -> Result<Lock, Failure> {
    let path = lab.join(format!("{name}.lock"));
    let cannot = |what: String| {
        Failure::new(format!("{}: {what}", path.display()), "nothing was changed; run this again later")
    };
    std::fs::create_dir_all(lab).map_err(|error| cannot(format!("its folder cannot be made: {error}")))?;
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| cannot(format!("cannot be opened: {error}")))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= limit => {
                return Err(cannot(format!("another `lab` command has held it for {} s", limit.as_secs())));
            }
            Err(TryLockError::WouldBlock) => {
                // Said once: at the first look, which is the one without a pause before it.
                if begun.elapsed() < Duration::from_millis(100) {
                    eprintln!("[{name}] another `lab` command is at work here: waiting for it to end");
                }
                sleep(Duration::from_millis(200));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(format!("cannot be locked: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_command_at_a_site_waits_and_gives_up_in_time() {
        let lab = std::env::temp_dir().join(format!("farsite-xtask-lock-{}", std::process::id()));
        let first = take(&lab, "north", Duration::ZERO).unwrap();
        let text = take(&lab, "north", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(text.contains("another `lab` command"), "{text}");
        assert!(take(&lab, "south", Duration::ZERO).is_ok(), "the other site is free");
        drop(first);
        assert!(take(&lab, "north", Duration::ZERO).is_ok());
        std::fs::remove_dir_all(&lab).unwrap();
    }
}
