//! What exists against what entries capture, one record at a time: only what is unprotected is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use farsite_model::nearest::did_you_mean;
use farsite_model::policy::{Item, Select, is_like};
use farsite_model::{GroupName, ItemId};
use farsite_openstack::holds;
use farsite_openstack::records::{Image, Volume};

use super::{InVain, Tally, Unprotected};

/// How Cinder names files and images by default (`volume_name_template`).
const PREFIX: &str = "volume-";

/// What an entry of a policy captures.
#[derive(Debug)]
pub(super) enum Covers {
    /// Images, by id.
    Images(BTreeSet<String>),
    AllImages,
    /// Volumes, by what their files are named after; and those that are selected and have no file where they should.
    Volumes {
        found: BTreeSet<String>,
        missing: BTreeSet<String>,
    },
    /// One file, which may be a volume's.
    File(String),
    ByWords {
        select: Box<Select>,
        project: Option<String>,
        backend: Option<String>,
    },
    /// Its items cannot be listed: so images, or volumes, are not captured now.
    Nothing {
        images: bool,
    },
}

impl Covers {
    pub(super) fn listed(item: &Item, items: &[ItemId]) -> Self {
        let Item::Cinder(cinder) = item else {
            return Self::Images(items.iter().map(|item| item.name().to_owned()).collect());
        };
        let is_there = |name: &str| cinder.path.as_ref().is_none_or(|folder| folder.join(name).exists());
        let (found, missing): (Vec<&ItemId>, Vec<&ItemId>) =
            items.iter().partition(|item| is_there(item.name()));
        let ids = |items: Vec<&ItemId>| items.iter().filter_map(|item| stored_as(item.name())).collect();
        Self::Volumes { found: ids(found), missing: ids(missing) }
    }
    pub(super) fn file(path: &Path) -> Option<Self> {
        stored_as(path.file_name()?.to_str()?).map(Self::File)
    }
    pub(super) fn nothing(item: &Item) -> Self {
        Self::Nothing { images: matches!(item, Item::Glance(_)) }
    }
}

/// The id that a file or image is named after.
fn stored_as(file: &str) -> Option<String> {
    let id = file.strip_prefix(PREFIX)?.split('.').next()?;
    (!id.is_empty()).then(|| id.to_owned())
}

/// An entry of a policy, and what was seen of it so far.
#[derive(Debug)]
pub(super) struct Entry {
    group: GroupName,
    id: ItemId,
    covers: Covers,
    select: Select,
    backend: Option<String>,
    /// The group holds the keys of its encrypted volumes.
    has_keys: bool,
    /// Ids and names of its selection that nothing was found for yet.
    ids: BTreeSet<String>,
    names: BTreeSet<String>,
    covered: u64,
}

impl Entry {
    pub(super) fn new(group: GroupName, item: &Item, covers: Covers) -> Self {
        let (select, backend, has_keys) = match item {
            Item::Cinder(cinder) => (
                cinder.select.as_deref().cloned().unwrap_or_default(),
                cinder.backend.clone(),
                !cinder.encryption_keys.is_empty(),
            ),
            _ => (Select::default(), None, false),
        };
        Self {
            ids: select.ids.iter().cloned().collect(),
            names: select.names.iter().cloned().collect(),
            id: item.id(),
            covered: 0,
            group,
            covers,
            select,
            backend,
            has_keys,
        }
    }

    fn covers_volume(&self, volume: &Volume, backends: &BTreeSet<String>) -> bool {
        match &self.covers {
            Covers::Volumes { found, .. } => found.contains(volume.stored_as()),
            Covers::File(id) => id == volume.stored_as(),
            Covers::ByWords { select, project, backend } => {
                let is_there = match backend {
                    Some(backend) => volume.backend() == Some(backend),
                    // Which of several it reads, its words do not say.
                    None => backends.len() <= 1,
                };
                let file = format!("{PREFIX}{}", volume.stored_as());
                let by_file = select.files.is_empty() || select.files.iter().any(|one| is_like(one, &file));
                is_there && by_file && holds(select, project.as_deref(), volume)
            }
            _ => false,
        }
    }

    fn covers_image(&self, image: &Image) -> bool {
        match &self.covers {
            Covers::Images(ids) => ids.contains(&image.id),
            Covers::AllImages => true,
            _ => false,
        }
    }

    fn named(&self) -> String {
        format!("group {}, {}", self.group, self.id)
    }

    fn see(&mut self, volume: &Volume) {
        self.ids.remove(&volume.id);
        self.ids.remove(volume.stored_as());
        if let Some(given) = &volume.name {
            self.names.retain(|name| !is_like(name, given));
        }
    }
}

/// The comparison under way.
pub(super) struct Comparison {
    entries: Vec<Entry>,
    backends: BTreeSet<String>,
    types: BTreeSet<String>,
    projects: BTreeMap<String, String>,
    /// A listing may tell of something twice.
    seen: BTreeSet<String>,
    compared: Compared,
}

#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) images: Tally,
    pub(super) volumes: Tally,
    pub(super) unprotected: Vec<Unprotected>,
    pub(super) in_vain: Vec<InVain>,
}

impl Comparison {
    pub(super) fn new(
        entries: Vec<Entry>,
        backends: BTreeSet<String>,
        projects: BTreeMap<String, String>,
    ) -> Self {
        Self {
            entries,
            backends,
            types: BTreeSet::new(),
            projects,
            seen: BTreeSet::new(),
            compared: Compared::default(),
        }
    }

    pub(super) fn knows_types(&mut self, types: BTreeSet<String>) {
        self.types = types;
    }

    pub(super) fn image(&mut self, image: &Image) {
        if !self.seen.insert(image.id.clone()) {
            return;
        }
        if !image.has_data() {
            self.compared.images.without_data += 1;
            return;
        }
        let mut is_covered = false;
        for entry in self.entries.iter_mut().filter(|entry| entry.covers_image(image)) {
            entry.covered += 1;
            is_covered = true;
        }
        if is_covered {
            self.compared.images.protected += 1;
            return;
        }
        let why = match self.unlisted(true) {
            Some(why) => why,
            None if self.entries.iter().any(|entry| matches!(entry.covers, Covers::Images(_))) => {
                "no file of it is in a store that a policy reads".to_owned()
            }
            None => "no policy of this site has a `glance` entry".to_owned(),
        };
        let size_bytes = image.size.unwrap_or(0);
        self.add("image", &image.id, image.name.as_ref(), image.owner.as_ref(), size_bytes, why);
    }

    pub(super) fn volume(&mut self, volume: &Volume) {
        if !self.seen.insert(volume.id.clone()) {
            return;
        }
        let mut covering = Vec::new();
        for (n, entry) in self.entries.iter_mut().enumerate() {
            entry.see(volume);
            if entry.covers_volume(volume, &self.backends) {
                entry.covered += 1;
                covering.push(n);
            }
        }
        if !volume.has_data() {
            self.compared.volumes.without_data += 1;
            return;
        }
        let covering: Vec<&Entry> = covering.into_iter().map(|n| &self.entries[n]).collect();
        let why = match covering.first() {
            Some(_) if !volume.encrypted || covering.iter().any(|entry| entry.has_keys) => {
                self.compared.volumes.protected += 1;
                return;
            }
            Some(entry) => {
                let key = match &volume.encryption_key_id {
                    Some(_) => "a key of the key manager (Barbican)",
                    None => "Cinder's `fixed_key` or a key that it does not tell",
                };
                format!(
                    "it is encrypted with {key}, and {} does not say which items hold it (`encryption-keys`)",
                    entry.named()
                )
            }
            None => self.why_not(volume),
        };
        let (name, project) = (volume.name.as_ref(), volume.project.as_ref());
        self.add("volume", &volume.id, name, project, volume.size << 30, why);
    }

    fn why_not(&self, volume: &Volume) -> String {
        let selects = |entry: &&Entry| match &entry.covers {
            Covers::Volumes { missing, .. } => missing.contains(volume.stored_as()),
            _ => false,
        };
        if let Some(entry) = self.entries.iter().find(selects) {
            return format!("{} selects it, and has no file of it where it looks", entry.named());
        }
        if let Some(why) = self.unlisted(false) {
            return why;
        }
        let of_cinder =
            |entry: &&Entry| !matches!(entry.covers, Covers::Images(_) | Covers::AllImages | Covers::File(_));
        let mut of_cinder = self.entries.iter().filter(of_cinder).peekable();
        match (of_cinder.peek(), volume.backend()) {
            (None, _) => "no policy of this site has a `cinder` entry".to_owned(),
            (Some(_), Some(backend)) => format!("no policy selects it, on the back end {backend}"),
            (Some(_), None) => "no policy selects it".to_owned(),
        }
    }

    /// Why an entry captures nothing now, when there is one.
    fn unlisted(&self, of_images: bool) -> Option<String> {
        self.entries.iter().find_map(|entry| match &entry.covers {
            Covers::Nothing { images } if *images == of_images => {
                Some(format!("{} cannot be listed now", entry.named()))
            }
            _ => None,
        })
    }

    fn add(
        &mut self,
        kind: &'static str,
        id: &str,
        name: Option<&String>,
        project: Option<&String>,
        size_bytes: u64,
        why: String,
    ) {
        let tally = if kind == "image" { &mut self.compared.images } else { &mut self.compared.volumes };
        tally.unprotected += 1;
        tally.unprotected_bytes += size_bytes;
        let project = project.map(|id| self.projects.get(id).unwrap_or(id).clone());
        self.compared.unprotected.push(Unprotected {
            kind,
            id: id.to_owned(),
            name: name.filter(|name| !name.is_empty()).cloned(),
            project,
            size_bytes,
            why,
        });
    }

    /// Everything has been seen.
    pub(super) fn end(mut self) -> Compared {
        let (types, backends) = (&self.types, &self.backends);
        let named = |what: &str, name: &str, known: &BTreeSet<String>| {
            let near = did_you_mean(name, known.iter().map(String::as_str));
            format!("there is no {what} {name}{near}")
        };
        for entry in &self.entries {
            let mut vain: Vec<String> = Vec::new();
            if let Some(backend) = entry.backend.as_ref().filter(|backend| !backends.contains(*backend)) {
                vain.push(named("back end", backend, backends));
            }
            if let Some(kind) = entry.select.volume_type.as_ref().filter(|kind| !types.contains(*kind)) {
                vain.push(named("volume type", kind, types));
            }
            vain.extend(entry.ids.iter().map(|id| format!("there is no volume {id}")));
            vain.extend(entry.names.iter().map(|name| format!("no volume is called {name}")));
            if let (true, Covers::File(id)) = (entry.covered == 0, &entry.covers) {
                vain.push(format!("there is no volume {id}, which its file is named after"));
            } else if entry.covered == 0 && vain.is_empty() && !matches!(entry.covers, Covers::Nothing { .. })
            {
                vain.push("it captures nothing that this cloud has".to_owned());
            }
            let of = |what| InVain { group: entry.group.clone(), entry: entry.id.clone(), what };
            self.compared.in_vain.extend(vain.into_iter().map(of));
        }
        self.compared
            .unprotected
            .sort_by(|a, b| (a.kind, &a.project, &a.name, &a.id).cmp(&(b.kind, &b.project, &b.name, &b.id)));
        self.compared
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(id: &str, name: &str, more: Value) -> Volume {
        let mut record = json!({
            "id": id, "name": name, "status": "available", "size": 2, "created_at": null,
            "os-vol-tenant-attr:tenant_id": "p1", "os-vol-host-attr:host": "ctl@nfs#pool",
        });
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(record).unwrap()
    }

    fn image(id: &str, status: &str) -> Image {
        let record = json!({ "id": id, "name": "cirros", "status": status, "size": 100, "visibility": "public",
                             "owner": "p1", "created_at": null, "updated_at": null });
        serde_json::from_value(record).unwrap()
    }

    fn entry(text: Value, covers: Covers) -> Entry {
        Entry::new("cloud".parse().unwrap(), &serde_json::from_value(text).unwrap(), covers)
    }

    fn comparison(entries: Vec<Entry>) -> Comparison {
        let projects = [("p1".to_owned(), "shop".to_owned())];
        Comparison::new(entries, ["nfs".to_owned()].into(), projects.into())
    }

    fn by_words(select: Value, backend: Option<&str>) -> Covers {
        let select = Box::new(serde_json::from_value(select).unwrap());
        Covers::ByWords { select, project: None, backend: backend.map(str::to_owned) }
    }

    fn ids(compared: &Compared) -> Vec<(&str, &str)> {
        compared.unprotected.iter().map(|one| (one.id.as_str(), one.why.as_str())).collect()
    }

    #[test]
    fn what_no_entry_captures_is_named_with_its_project_and_size() {
        let found = Covers::Volumes { found: ["a".to_owned()].into(), missing: ["c".to_owned()].into() };
        let mut comparison = comparison(vec![entry(json!({ "cinder": { "path": "/x" } }), found)]);
        comparison.volume(&volume("a", "db", json!({})));
        comparison.volume(&volume("b", "web", json!({})));
        comparison.volume(&volume("b", "web", json!({})));
        comparison.volume(&volume("c", "lost", json!({})));
        comparison.volume(&volume("d", "new", json!({ "status": "creating" })));
        comparison.image(&image("i", "active"));
        comparison.image(&image("j", "queued"));
        let compared = comparison.end();
        assert_eq!(
            compared.volumes,
            Tally { protected: 1, unprotected: 2, without_data: 1, unprotected_bytes: 4 << 30 }
        );
        assert_eq!((compared.images.unprotected, compared.images.without_data), (1, 1));
        let web = compared.unprotected.iter().find(|one| one.id == "b").unwrap();
        assert_eq!((web.name.as_deref(), web.project.as_deref()), (Some("web"), Some("shop")));
        let [(_, image), (_, lost), (_, web)] = ids(&compared)[..] else { panic!("{compared:?}") };
        assert!(image.contains("`glance` entry") && web.contains("back end nfs"), "{compared:?}");
        assert!(lost.contains("no file of it"), "{lost}");
    }

    #[test]
    fn an_encrypted_volume_is_protected_when_its_key_is() {
        for (keys, is_protected) in [(json!([]), false), (json!(["mariadb/main", "files/barbican"]), true)] {
            let text = json!({ "cinder": { "path": "/x", "encryption-keys": keys } });
            let found = ["a", "b"].map(str::to_owned).into();
            let found = Covers::Volumes { found, missing: BTreeSet::new() };
            let mut comparison = comparison(vec![entry(text, found)]);
            comparison.volume(&volume("a", "db", json!({ "encrypted": true })));
            comparison.volume(&volume("b", "db", json!({ "encrypted": true, "encryption_key_id": "k" })));
            let compared = comparison.end();
            assert_eq!(compared.volumes.protected == 2, is_protected, "{compared:?}");
            let whys: Vec<&str> = ids(&compared).iter().map(|(_, why)| *why).collect();
            assert!(
                is_protected || (whys[0].contains("`fixed_key`") && whys[1].contains("Barbican")),
                "{whys:?}"
            );
        }
    }

    #[test]
    fn what_a_policy_names_in_vain_is_said() {
        let select = json!({ "ids": ["a", "gone"], "names": ["db*", "dbb"], "volume-type": "gold" });
        let text = json!({ "cinder": { "path": "/x", "backend": "nsf", "select": select } });
        let mut comparison = comparison(vec![
            entry(text, by_words(select, Some("nsf"))),
            entry(json!({ "volume": { "path": "/x/volume-zz" } }), Covers::File("zz".to_owned())),
        ]);
        comparison.knows_types(["goldd".to_owned()].into());
        comparison.volume(&volume("a", "db1", json!({})));
        let said: Vec<String> = comparison.end().in_vain.into_iter().map(|vain| vain.what).collect();
        assert_eq!(
            said,
            [
                "there is no back end nsf; did you mean nfs?",
                "there is no volume type gold; did you mean goldd?",
                "there is no volume gone",
                "no volume is called dbb",
                "there is no volume zz, which its file is named after",
            ]
        );
    }

    #[test]
    fn by_its_words_an_entry_captures_a_back_end_that_it_names_or_that_is_the_only_one() {
        for (backend, backends, is_protected) in [
            (Some("nfs"), ["nfs", "ceph"].as_slice(), true),
            (Some("ceph"), &["nfs", "ceph"], false),
            (None, &["nfs"], true),
            (None, &["nfs", "ceph"], false),
        ] {
            let text = json!({ "cinder": { "path": "/x", "backend": backend } });
            let entry = entry(text, by_words(json!({ "metadata": { "dr": "yes" } }), backend));
            let backends = backends.iter().map(|name| (*name).to_owned()).collect();
            let mut comparison = Comparison::new(vec![entry], backends, BTreeMap::new());
            comparison.volume(&volume("a", "db", json!({ "metadata": { "dr": "yes" } })));
            comparison.volume(&volume("b", "db", json!({})));
            let compared = comparison.end();
            assert_eq!(compared.volumes.protected == 1, is_protected, "{backend:?} {compared:?}");
            assert!(compared.unprotected.iter().any(|one| one.id == "b"));
        }
    }

    #[test]
    fn an_entry_that_cannot_be_listed_protects_nothing() {
        let text = json!({ "glance": { "store": "/gone" } });
        let nothing = Covers::Nothing { images: true };
        let mut comparison = comparison(vec![entry(text, nothing)]);
        comparison.image(&image("i", "active"));
        let compared = comparison.end();
        assert!(ids(&compared)[0].1.contains("cannot be listed now"), "{compared:?}");
    }
}
