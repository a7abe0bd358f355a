//! Which services answer for which volumes. A volume is attached, extended and deleted by the service whose host stands in its row, and
//! by nobody where no service is called so: the host was not rewritten, or the standby's services have other names than was thought.

use std::collections::{BTreeMap, BTreeSet};

use super::{Gravity, Plan};

/// Hosts, or clusters where several hosts serve one, with back end and pool; and how many volumes they have.
pub(crate) const QUESTION: &str = "SELECT COALESCE(NULLIF(cluster_name, ''), host), COUNT(*) FROM cinder.volumes WHERE deleted = 0 AND host IS NOT NULL GROUP BY 1 ORDER BY 1";

/// What is known of this site's services.
pub(crate) struct Own<'o> {
    pub(crate) site: &'o str,
    /// Of its cinder-volume services, with the back end: `ctl-south@nfs`.
    pub(crate) hosts: BTreeSet<String>,
    /// With or without the back end: names that are the same at both sites, as a person says.
    pub(crate) said: BTreeSet<String>,
}

/// A line for each host that no service has; an error where all volumes are on such.
pub(crate) fn plan(rows: &[Vec<Option<String>>], own: &Own) -> Result<Plan, String> {
    let mut plan = Plan::default();
    let (mut all, mut astray) = (0, BTreeMap::<&str, u64>::new());
    for row in rows {
        let [Some(host), Some(count)] = &row[..] else { continue };
        let count: u64 = count.parse().unwrap_or(0);
        let host = host.split('#').next().unwrap_or(host);
        let name = host.split('@').next().unwrap_or(host);
        let is_said = own.said.contains(name) || own.said.contains(host);
        all += count;
        if !own.hosts.contains(host) && !is_said {
            *astray.entry(host).or_default() += count;
        }
    }
    let theirs = own.hosts.iter().cloned().collect::<Vec<_>>().join(", ");
    let lost: u64 = astray.values().sum();
    if lost > 0 && lost == all {
        let named: Vec<String> = astray.iter().map(|(host, count)| format!("{host} ({count})")).collect();
        return Err(format!(
            "all {all} volumes are on hosts that no cinder-volume of {site} is called: {}; {site}'s own are called {theirs}\n  hint: no row of them is changed yet: add them to `rewrite.hosts` of farsite.yaml (then `farsite promotion cancel` and promote again, because `--resume` does not rewrite again), or put `host` right in the restored database, which serves (`cinder-manage volume update_host --currenthost … --newhost …`; then `--resume`). Where {site}'s services are called so from now on: say so with `hosts: {{ NAME: NAME }}`, and `--resume`",
            named.join(", "),
            site = own.site
        ));
    }
    for (host, count) in astray {
        let site = own.site;
        let line = format!(
            "{count} volumes are on it, and no cinder-volume of {site} is called so ({theirs}): nobody attaches or deletes them until `cinder-manage volume update_host` gives them one that is"
        );
        plan.say(Gravity::HeldBack, format!("host {host}"), line);
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_on_a_host_that_no_service_is_called_are_listed_and_stop_the_promotion_where_they_are_all() {
        let rows = |hosts: &[(&str, u64)]| -> Vec<Vec<Option<String>>> {
            hosts.iter().map(|(host, n)| vec![Some((*host).to_owned()), Some(n.to_string())]).collect()
        };
        let mut own =
            Own { site: "south", hosts: BTreeSet::from(["ctl-south@nfs".to_owned()]), said: BTreeSet::new() };
        let some = plan(&rows(&[("ctl-north@nfs#a", 2), ("ctl-south@nfs#a", 1)]), &own).unwrap();
        let [line] = &some.lines[..] else { panic!("{some:?}") };
        assert_eq!((line.gravity, line.subject.as_str()), (Gravity::HeldBack, "host ctl-north@nfs"));
        assert!(line.said.starts_with("2 volumes") && line.said.contains("ctl-south@nfs"), "{line:?}");
        // A back end that no service has.
        let why = plan(&rows(&[("ctl-north@nfs#a", 2), ("ctl-south@rbd#b", 1)]), &own).unwrap_err();
        for word in ["all 3 volumes", "ctl-north@nfs (2), ctl-south@rbd (1)", "`rewrite.hosts`", "--resume"] {
            assert!(why.contains(word), "{why}");
        }
        own.said.insert("ctl-north".to_owned());
        assert_eq!(plan(&rows(&[("ctl-north@nfs#a", 2)]), &own).unwrap(), Plan::default());
        assert_eq!(plan(&[], &own).unwrap(), Plan::default(), "no volume at all");
    }
}
