//! Files and folders, such as Keystone's keys, as one tree item. Paths come in; a tree below `/` goes out. The files are
//! read where they lie, so the item is `fuzzy` unless hooks hold it still.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use farsite_model::policy;
use farsite_model::{Consistency, ItemId, ItemKind};

use crate::{Capture, CaptureContext, CheckLine, Content, Source, SourceError};

pub struct Files {
    item: ItemId,
    paths: Vec<PathBuf>,
}

impl Files {
    pub fn new(item: &policy::Item, files: &policy::Files) -> Self {
        Self { item: item.id(), paths: files.paths.clone() }
    }

    /// All files below the named paths, relative to `/`, folders before what they hold.
    fn list(&self) -> Result<Vec<PathBuf>, SourceError> {
        let mut found = Vec::new();
        for path in &self.paths {
            let absolute = std::path::absolute(path)
                .map_err(|error| SourceError::new(format!("reading {}", path.display()), error))?;
            walk(&absolute, &mut found)?;
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}

fn walk(path: &Path, found: &mut Vec<PathBuf>) -> Result<(), SourceError> {
    let fail = |error: std::io::Error| SourceError::new(format!("reading {}", path.display()), error);
    let about = std::fs::symlink_metadata(path).map_err(fail)?;
    found.push(path.strip_prefix("/").unwrap_or(path).to_owned());
    if about.is_dir() {
        for entry in std::fs::read_dir(path).map_err(fail)? {
            walk(&entry.map_err(fail)?.path(), found)?;
        }
    }
    Ok(())
}

#[async_trait]
impl Source for Files {
    fn describe(&self) -> String {
        format!("files: {}", self.item.name())
    }
    async fn check(&self) -> Vec<CheckLine> {
        let result = match self.list() {
            Ok(paths) => Ok(format!("{} files and folders", paths.len())),
            Err(error) => Err(error.to_string()),
        };
        vec![CheckLine { subject: self.item.to_string(), result }]
    }
    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        Ok(vec![self.item.clone()])
    }
    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let captured = context.clock.capture_time();
        Ok(Capture {
            item: item.clone(),
            kind: ItemKind::Files,
            captured,
            consistency: if context.frozen { Consistency::Crash } else { Consistency::Fuzzy },
            content: Content::Tree { root: PathBuf::from("/"), paths: self.list()? },
            still: false,
            ancestor: None,
            details: std::collections::BTreeMap::new(),
            guard: None,
        })
    }
}
