//! The configuration files of a site, made out of the templates in `xtask/lab/`.

use std::fs;
use std::path::{Path, PathBuf};

use super::site::Site;
use crate::failure::Failure;

/// Where each file stands below a site's `etc/`, and what it is made of.
const FILES: [(&str, &str); 9] = [
    ("mariadb.cnf", include_str!("../../lab/mariadb.cnf")),
    ("rabbitmq/rabbitmq.conf", include_str!("../../lab/rabbitmq.conf")),
    ("rabbitmq/enabled_plugins", "[].\n"),
    ("haproxy.cfg", include_str!("../../lab/haproxy.cfg")),
    ("keystone/keystone.conf", include_str!("../../lab/keystone.conf")),
    ("glance/glance-api.conf", include_str!("../../lab/glance-api.conf")),
    ("cinder/cinder.conf", include_str!("../../lab/cinder.conf")),
    ("cinder/rootwrap.conf", include_str!("../../lab/rootwrap.conf")),
    ("cinder/nfs_shares", "{{share}}\n"),
];
/// The same of a site with a Ceph cluster.
const CEPH_FILES: [(&str, &str); 1] = [("ceph/ceph.conf", include_str!("../../lab/ceph.conf"))];
/// What such a site has more in the files of Cinder and Glance.
const CINDER_CEPH: &str = include_str!("../../lab/cinder-ceph.conf");
const GLANCE_CEPH: &str = include_str!("../../lab/glance-ceph.conf");
const CLOUD: &str = include_str!("../../lab/cloud.yaml");

/// Beside each file its text as this program wrote it: a file that differs from it was changed by somebody.
const AS_WRITTEN: &str = ".as-written";

/// Writes the site's configuration files. A file that somebody changed since is left as it is: a failover may have
/// put another password there. Returns those files, as paths below `etc/`.
pub fn write(site: &Site, venv: &Path) -> Result<Vec<&'static str>, Failure> {
    let values = values(site, venv, site.has_ceph())?;
    let mut kept = Vec::new();
    let ceph = CEPH_FILES.into_iter().filter(|_| site.has_ceph());
    for (name, template) in FILES.into_iter().chain(ceph) {
        let text = render(name, template, &values)?;
        if !write_unless_changed(&site.etc(), name, &text)? {
            kept.push(name);
        }
    }
    Ok(kept)
}

/// Writes `clouds.yaml` for OpenStack's clients, with the admin of each site; returns where it is.
pub fn write_clouds(lab: &Path, venv: &Path) -> Result<PathBuf, Failure> {
    let mut text = "clouds:\n".to_owned();
    for site in Site::both(lab) {
        text.push_str(&render("cloud.yaml", CLOUD, &values(&site, venv, false)?)?);
    }
    let file = lab.join("clouds.yaml");
    write_file(&file, &text)?;
    Ok(file)
}

fn values(site: &Site, venv: &Path, ceph: bool) -> Result<Vec<(&'static str, String)>, Failure> {
    let path = |path: PathBuf| path.display().to_string();
    let mut values = vec![
        ("site", site.name.to_owned()),
        ("number", site.number.to_string()),
        ("address", site.address()),
        ("region", site.region().to_owned()),
        ("cinder_host", site.cinder_host()),
        ("share", site.share()),
        ("folder", path(site.folder())),
        ("etc", path(site.etc())),
        ("run", path(site.run())),
        ("log", path(site.log())),
        ("mounts", path(site.mounts())),
        ("mariadb_server", site.mariadb_server()),
        ("venv", path(venv.to_path_buf())),
        ("admin_password", site.password("admin")),
        ("service_password", site.password("service")),
        ("db_password", site.password("db")),
        ("mq_password", site.password("mq")),
        ("ceph_fsid", site.ceph_fsid()),
        ("ceph_name", site.ceph_name()),
    ];
    let (cinder, glance) = if ceph {
        // The section, and a line between it and the next.
        let section = |name: &str, template: &str, values: &[_]| {
            render(name, template, values).map(|text| format!("{text}\n"))
        };
        (
            ("nfs,ceph", section("cinder-ceph.conf", CINDER_CEPH, &values)?),
            // Cinder makes clones of images whose location it is told.
            ("fs:file,ceph:rbd", section("glance-ceph.conf", GLANCE_CEPH, &values)?),
        )
    } else {
        (("nfs", String::new()), ("fs:file", String::new()))
    };
    values.extend([
        ("cinder_backends", cinder.0.to_owned()),
        ("cinder_ceph", cinder.1),
        ("glance_backends", glance.0.to_owned()),
        ("glance_ceph", glance.1),
        ("glance_default", if ceph { "ceph" } else { "fs" }.to_owned()),
        ("glance_more", if ceph { "show_image_direct_url = true\n" } else { "" }.to_owned()),
    ]);
    Ok(values)
}

/// The template with each `{{name}}` replaced. What is not known is an error, so that none ends up in a file.
fn render(name: &str, template: &str, values: &[(&str, String)]) -> Result<String, Failure> {
    let wrong =
        |what: String| Failure::new(format!("the template {name}: {what}"), "correct it in xtask/lab/");
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once("{{") {
        let (key, after) =
            behind.split_once("}}").ok_or_else(|| wrong("a `{{` without its `}}`".to_owned()))?;
        let (_, value) = values
            .iter()
            .find(|(known, _)| *known == key)
            .ok_or_else(|| wrong(format!("there is no `{key}`")))?;
        text.push_str(before);
        text.push_str(value);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

/// Whether the file now has this text; otherwise somebody had changed it.
fn write_unless_changed(etc: &Path, name: &str, text: &str) -> Result<bool, Failure> {
    let file = etc.join(name);
    let written = etc.join(AS_WRITTEN).join(name);
    if let Ok(there) = fs::read_to_string(&file) {
        if there == text {
            write_file(&written, text)?;
            return Ok(true);
        }
        // A file without a record comes from an `up` that was cut off between the two writes.
        if fs::read_to_string(&written).is_ok_and(|as_written| as_written != there) {
            return Ok(false);
        }
    }
    write_file(&file, text)?;
    write_file(&written, text)?;
    Ok(true)
}

fn write_file(file: &Path, text: &str) -> Result<(), Failure> {
    let write = || {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(file, text)
    };
    write().map_err(|error| {
        Failure::new(
            format!("{} cannot be written: {error}", file.display()),
            "see whether the disk is full (df -h)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_has_only_values_that_are_known() {
        for site in Site::both(Path::new("/lab")) {
            for ceph in [false, true] {
                let values = values(&site, Path::new("/venv"), ceph).unwrap();
                let files = FILES.into_iter().chain(CEPH_FILES).chain([("cloud.yaml", CLOUD)]);
                for (name, template) in files {
                    let text = render(name, template, &values).unwrap();
                    assert!(!text.contains("{{") && !text.is_empty(), "{name}");
                    assert!(!name.starts_with("cinder/c") || text.contains("\n[ceph]\n") == ceph, "{text}");
                }
            }
        }
    }

    #[test]
    fn a_template_with_an_unknown_value_is_an_error_that_names_both() {
        let text = render("a.conf", "x = {{nothing}}", &[]).unwrap_err().to_string();
        assert!(text.contains("a.conf") && text.contains("nothing"), "{text}");
        assert!(render("a.conf", "x = {{open", &[]).is_err());
    }

    #[test]
    fn a_value_is_not_looked_at_for_values_again() {
        let values = [("a", "{{b}}".to_owned()), ("b", "no".to_owned())];
        assert_eq!(render("t", "<{{a}}>", &values).unwrap(), "<{{b}}>");
    }

    #[test]
    fn a_file_that_somebody_changed_is_left_as_it_is() {
        let etc = std::env::temp_dir().join(format!("farsite-xtask-etc-{}", std::process::id()));
        let file = etc.join("cinder/cinder.conf");
        assert!(write_unless_changed(&etc, "cinder/cinder.conf", "one").unwrap());
        assert!(write_unless_changed(&etc, "cinder/cinder.conf", "two").unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        fs::write(&file, "by hand").unwrap();
        assert!(!write_unless_changed(&etc, "cinder/cinder.conf", "three").unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "by hand");
        fs::remove_dir_all(&etc).unwrap();
    }
}
