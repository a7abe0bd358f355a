//! Whether the passwords of `rewrite` are those that this site's services have. A promotion gives them to the accounts that it
//! brings; where one is wrong, the services of this site are refused by their own database when everything else is done.

use std::collections::BTreeSet;

use farsite_model::secret::Secret;
use farsite_sources::mariadb::account::{Door, NoRows, ask_as};

use super::{Findings, Login, Stated};
use crate::site::Accounts;

/// Compares with what the services' configuration states, and logs in to the site's own database where it serves now.
pub async fn passwords(accounts: &Accounts, logins: &[Login], doors: &[Door]) -> Findings {
    let mut findings = Findings::default();
    compare(accounts, logins, &mut findings);
    for (name, secret) in accounts.database() {
        let theirs =
            logins.iter().filter(|login| login.name == *name).filter_map(|login| login.door.as_ref());
        let own: BTreeSet<&Door> = theirs.collect();
        knock(name, secret, &own, doors, &mut findings).await;
    }
    findings
}

/// Only a service's own way in judges: at another one the server takes it for another account, or for none.
async fn knock(name: &str, secret: &Secret, own: &BTreeSet<&Door>, doors: &[Door], findings: &mut Findings) {
    let mut untried = Vec::new();
    let mut is_judged = false;
    for door in own {
        match ask_as(door, name, Some(secret), "SELECT 1").await {
            Ok(_) => {
                is_judged = true;
                findings.good.push(format!("{name} is let in at {door}"));
            }
            Err(NoRows::Refused(why)) => {
                is_judged = true;
                findings.problems.push(format!(
                    "this site's database refuses the account {name} with the password of `rewrite.database-passwords` where its service logs in ({why})\n  hint: its services have another one: put that where farsite.yaml says"
                ));
            }
            Err(NoRows::NotAsked(why)) => untried.push(why),
        }
    }
    if is_judged {
        note_untried(name, &untried, findings);
        return;
    }
    for door in doors.iter().filter(|door| !own.contains(door)) {
        match ask_as(door, name, Some(secret), "SELECT 1").await {
            Ok(_) => {
                findings.good.push(format!("{name} is let in at {door}"));
                if !own.is_empty() {
                    note_untried(name, &untried, findings);
                }
                return;
            }
            Err(NoRows::Refused(why)) => {
                untried.push(format!("{why} (which says nothing of its own way in)"));
            }
            Err(NoRows::NotAsked(why)) => untried.push(why),
        }
    }
    let by = if own.is_empty() {
        "by its own way in, which no file of the variable `configuration` states"
    } else {
        "by its own way in"
    };
    let why = if untried.is_empty() { "its database has no place".to_owned() } else { untried.join("; ") };
    findings
        .notes
        .push(format!("the password of the database account {name} could not be tried {by}: {why}"));
}

fn note_untried(name: &str, untried: &[String], findings: &mut Findings) {
    findings.notes.extend(untried.iter().map(|why| {
        format!("the password of the database account {name} could not be tried by its own way in: {why}")
    }));
}

fn compare(accounts: &Accounts, logins: &[Login], findings: &mut Findings) {
    let (mut kept, mut unread) = (BTreeSet::new(), BTreeSet::new());
    let mut stated: BTreeSet<(bool, &str)> = BTreeSet::new();
    for login in logins {
        let (option, what, given) = match login.door {
            Some(_) => ("database-passwords", "the database account", accounts.database()),
            None => ("service-passwords", "the user", accounts.services()),
        };
        let place = &login.place;
        match (given.iter().find(|(name, _)| *name == login.name), &login.password) {
            (None, _) => {
                kept.insert(format!(
                    "{place} logs in as {what} {}, whom `rewrite.{option}` does not name: that works only with the lost site's password",
                    login.name
                ));
            }
            (Some(_), Stated::Elsewhere) => {
                unread.insert(format!("{place}: the password of {what} {} stands elsewhere and was not compared", login.name));
            }
            (Some((name, secret)), Stated::Known(theirs)) if secret == theirs => {
                stated.insert((login.door.is_some(), name));
            }
            (Some((name, _)), Stated::Known(_)) => findings.problems.push(format!(
                "{place} has another password for {what} {name} than `rewrite.{option}` gives it: the service would be refused after the promotion\n  hint: put the password of that file where farsite.yaml says, or correct the file"
            )),
        }
    }
    findings.notes.extend(kept);
    findings.notes.extend(unread);
    if !stated.is_empty() {
        findings.good.push(format!("{} passwords are those of the configuration", stated.len()));
    }
    for (name, _) in accounts
        .services()
        .iter()
        .filter(|(name, _)| !logins.iter().any(|l| l.door.is_none() && l.name == *name))
    {
        findings.notes.push(format!(
            "the password of the user {name} was not compared: no file of the variable `configuration` states it"
        ));
    }
}

#[cfg(test)]
mod tests {
    use farsite_model::config::SiteRewrite;
    use farsite_model::secret::Secret;

    use super::*;

    fn world(given: &str) -> (tempfile::TempDir, Accounts) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p");
        std::fs::write(&file, given).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&file, mode).unwrap();
        let at = format!("file:{}", file.display());
        let rewrite: SiteRewrite = serde_json::from_value(
            serde_json::json!({"database-passwords": {"glance": at}, "service-passwords": {"cinder": at}}),
        )
        .unwrap();
        let accounts = Accounts::fetch(&rewrite).unwrap();
        (dir, accounts)
    }

    fn login(name: &str, password: &str, door: Option<Door>) -> Login {
        let password = Stated::Known(Secret::new(password));
        Login { place: "/etc/x.conf:3".into(), name: name.into(), password, door }
    }

    #[test]
    fn another_password_in_a_configuration_is_told_by_its_place_and_never_shown() {
        let (_dir, accounts) = world("right-one");
        let door = Door::Socket("/nonexistent".into());
        let logins = [
            login("glance", "wrong-one", Some(door.clone())),
            login("cinder", "right-one", None),
            login("nova", "x", Some(door)),
        ];
        let mut findings = Findings::default();
        compare(&accounts, &logins, &mut findings);
        assert_eq!(findings.problems.len(), 1, "{findings:?}");
        assert!(findings.problems[0].contains("/etc/x.conf:3") && findings.problems[0].contains("hint:"));
        assert!(findings.notes.iter().any(|note| note.contains("nova")), "{findings:?}");
        assert_eq!(findings.good.len(), 1);
        let all = format!("{findings:?}");
        assert!(!all.contains("wrong-one") && !all.contains("right-one"), "{all}");
    }

    #[tokio::test]
    async fn a_database_that_does_not_run_is_a_note_and_no_good_answer() {
        let (dir, accounts) = world("p");
        let doors = [Door::Socket(dir.path().join("s"))];
        let findings = passwords(&accounts, &[], &doors).await;
        assert!(findings.problems.is_empty() && findings.good.is_empty(), "{findings:?}");
        assert!(findings.notes.iter().any(|note| note.contains("could not be tried")), "{findings:?}");
    }
}
