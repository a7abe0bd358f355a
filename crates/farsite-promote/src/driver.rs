//! Who drives a promotion: user, host and process, in words that also tell whether that process still lives here.
//!
//! What must hold: a driver is called dead only when this very machine, in this very process namespace, shows that its
//! process is gone. A frozen process is not dead.

use std::fs;

/// This process: `ann@standby1 pid 4711 (started 88231, boot 5f1c…, namespace 4026531836)`.
pub fn this_driver() -> String {
    describe(std::process::id())
}

fn describe(pid: u32) -> String {
    let user = user().replace([' ', '@'], "_");
    format!(
        "{user}@{} pid {pid} (started {}, {})",
        host(),
        started(pid).map_or_else(|| "?".to_owned(), |ticks| ticks.to_string()),
        machine()
    )
}

/// Whoever runs this process; the account's name where the environment does not say it, as under cron.
pub fn user() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    named.filter(|user| !user.is_empty()).unwrap_or_else(|| account(rustix::process::getuid().as_raw()))
}

/// The account's name of this process itself, whoever asked for it.
pub(crate) fn process_account() -> String {
    account(rustix::process::geteuid().as_raw())
}

fn account(uid: u32) -> String {
    let accounts = read("/etc/passwd");
    let named = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("uid {uid}"))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn host() -> String {
    let host = read("/proc/sys/kernel/hostname");
    if host.is_empty() { "unknown".into() } else { host }
}

/// This boot of this machine, and the process namespace that pids are counted in.
fn machine() -> String {
    let namespace = fs::read_link("/proc/self/ns/pid")
        .map(|link| link.to_string_lossy().chars().filter(char::is_ascii_digit).collect::<String>())
        .unwrap_or_default();
    format!("boot {}, namespace {namespace}", read("/proc/sys/kernel/random/boot_id"))
}

/// Start time of a living process in clock ticks after boot: field 22 of proc(5)'s stat, behind the name in brackets. One that was
/// killed stands there until its parent has asked for it, as a zombie: when no thread of it is left, it will do nothing more.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let is_zombie = matches!(fields.next()?, "Z" | "X");
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if is_zombie && threads() <= 1 {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// True when `driver` ran on this machine and its process is gone: nobody has to wait for its deadline.
pub fn is_dead_here(driver: &str) -> bool {
    let parsed = (|| {
        let (who, rest) = driver.split_once(" pid ")?;
        let (pid, rest) = rest.split_once(" (started ")?;
        let (ticks, rest) = rest.split_once(", ")?;
        let on = who.rsplit_once('@')?.1;
        Some((on, pid.parse::<u32>().ok()?, ticks.parse::<u64>().ok()?, rest.strip_suffix(')')?))
    })();
    let Some((on, pid, ticks, there)) = parsed else { return false };
    on == host() && there == machine() && started(pid) != Some(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_driver_is_not_dead_and_a_stranger_is_never_called_so() {
        let own = this_driver();
        assert!(!is_dead_here(&own), "{own}");
        assert!(!is_dead_here("ann@elsewhere pid 999999 (started 5, boot x, namespace 1)"));
        assert!(!is_dead_here("a test"));
    }

    #[test]
    fn a_driver_whose_process_has_gone_is_dead_here() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let driver = describe(child.id());
        assert!(!is_dead_here(&driver));
        child.kill().unwrap();
        // Its parent has not asked for it yet, and it is dead all the same.
        let begun = std::time::Instant::now();
        while !is_dead_here(&driver) {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{driver}");
        }
        child.wait().unwrap();
        assert!(is_dead_here(&driver), "{driver}");
    }
}
