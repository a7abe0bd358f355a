//! The other host is reached through a real ssh whose key may start nothing but `farsite serve-sources`. Both ends of ssh are
//! here, over a pipe in place of a network.

use std::process::Command;

use super::*;

#[track_caller]
fn key(path: &Path) -> String {
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
}

#[test]
fn a_key_with_a_forced_command_is_all_that_the_other_host_gives() {
    if !mounts::are_own() {
        let name = "a_key_with_a_forced_command_is_all_that_the_other_host_gives";
        return mounts::with_own(module_path!(), name, &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = two_hosts().await;
        let folder = sites.path("ssh");
        fs::create_dir(&folder).unwrap();
        // Where sshd puts itself before anybody has a key; nobody else sees this one.
        let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status().unwrap();
        assert!(mounted.success());
        fs::create_dir("/run/sshd").unwrap();
        let host_key = key(&folder.join("host"));
        let client_key = key(&folder.join("client"));
        fs::write(folder.join("known"), format!("stor1 {host_key}\n")).unwrap();
        let forced = serve(&sites).replace('"', "\\\"");
        fs::write(folder.join("keys"), format!("command=\"unshare --uts sh -c '{forced}'\",restrict {client_key}\n")).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        let server = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nPermitRootLogin forced-commands-only\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n",
            at("host"),
            at("keys")
        );
        fs::write(folder.join("sshd_config"), server).unwrap();
        let (identity, known) = (at("client"), format!("UserKnownHostsFile={}", at("known")));
        let proxy = format!("ProxyCommand=/usr/sbin/sshd -i -f {}", at("sshd_config"));
        let ssh = ["ssh", "-F", "/dev/null", "-T", "-o", "BatchMode=yes", "-o", &known, "-o", &proxy, "-i", &identity, "root@stor1"];
        // Whatever else is asked for.
        reached_by(&sites, &[&ssh[..], &["false"]].concat());
        let report = replicate(&sites);
        assert_eq!((&report["whole"], report["items"].as_u64()), (&true.into(), Some(5)), "{report}");
        assert!(restored(&sites, &report, "cinder/volume-a") == noise(7, 8 << 20));
        assert_nothing_is_left(&sites);
        // A key that nobody knows: said by ssh, and said by us.
        fs::write(folder.join("keys"), "").unwrap();
        let answer = said(&sites.farsite("north", &["check"]));
        assert!(answer.contains("✗ cinder/main: host stor1") && answer.contains("Permission denied"), "{answer}");
    });
}
