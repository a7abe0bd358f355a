//! What names a site in the databases of its services. The names of the old site and of the new one come in; statements that
//! rewrite one into the other go out, and where the old ones are still found afterwards.
//!
//! What must hold: which columns and how stands in a table (`table.yaml`), not here; nothing is rewritten halfway.

mod accounts;
mod rewrite;
mod scan;
mod table;

use std::collections::BTreeMap;

use farsite_model::config::SiteRewrite;
use farsite_sources::mariadb::literal;

pub use accounts::{Accounts, set_accounts};
pub use rewrite::{Prepared, prepare};
pub(crate) use scan::each_text;
pub use scan::{Found, scan_databases, scan_files};

/// The databases of the services that the table knows.
pub const DATABASES: [&str; 3] = ["keystone", "glance", "cinder"];

/// Old names and what they become, by the word that the table has for their kind. Names that stay are left out.
pub fn names(rewrite: &SiteRewrite) -> BTreeMap<&'static str, Vec<(String, String)>> {
    let kinds = [
        ("regions", &rewrite.regions),
        ("urls", &rewrite.urls),
        ("hosts", &rewrite.hosts),
        ("exports", &rewrite.exports),
        ("paths", &rewrite.paths),
        ("clusters", &rewrite.clusters),
        ("zones", &rewrite.zones),
    ];
    let differ = |pairs: &BTreeMap<String, String>| {
        let mut pairs: Vec<(String, String)> =
            pairs.iter().filter(|(old, new)| old != new).map(|(o, n)| (o.clone(), n.clone())).collect();
        // The longer name first: `http://north:5000` before `http://north`.
        pairs.sort_by_key(|(old, _)| std::cmp::Reverse(old.len()));
        pairs
    };
    kinds.into_iter().map(|(kind, pairs)| (kind, differ(pairs))).collect()
}
