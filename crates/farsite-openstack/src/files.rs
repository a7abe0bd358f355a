//! Where clouds.yaml and its neighbours lie, and reading one of them without ever quoting it.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::CloudsError;

/// A variable's value, by its name.
pub type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

/// The files that describe clouds, as far as they are there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    pub(crate) clouds: Option<PathBuf>,
    /// `secure.yaml`: what it says goes before clouds.yaml.
    pub(crate) secure: Option<PathBuf>,
    /// `clouds-public.yaml`: what the profiles mean that clouds.yaml names.
    pub(crate) public: Option<PathBuf>,
}

impl Files {
    /// Those that the environment names, else the first of each in the usual folders.
    pub(crate) fn find(
        environment: Environment<'_>,
        working_folder: &Path,
        system_folder: &Path,
    ) -> Result<Self, CloudsError> {
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        let of_user = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(Path::new(&set("HOME")?).join(".config")))
            .map(|folder| folder.join("openstack"));
        let mut folders: Vec<PathBuf> =
            [Some(working_folder.to_owned()), of_user, Some(system_folder.to_owned())]
                .into_iter()
                .flatten()
                .collect();
        let clouds = match set("OS_CLIENT_CONFIG_FILE") {
            // Who names a file means it: another one must not stand in for it when it is missing.
            Some(file) => Some(PathBuf::from(file)),
            None => first(&folders, "clouds"),
        };
        if clouds.is_none() && set("OS_AUTH_URL").is_none() {
            let names = |folder: &PathBuf| [folder.join("clouds.yaml"), folder.join("clouds.yml")];
            return Err(CloudsError::NotFound { searched: folders.iter().flat_map(names).collect() });
        }
        if let Some(folder) = clouds.as_deref().and_then(Path::parent) {
            folders.insert(0, folder.to_owned());
        }
        let named = |variable: &str, stem: &str| match set(variable) {
            Some(file) => Some(PathBuf::from(file)),
            None => first(&folders, stem),
        };
        Ok(Self {
            secure: named("OS_CLIENT_SECURE_FILE", "secure"),
            public: named("OS_CLIENT_VENDOR_FILE", "clouds-public"),
            clouds,
        })
    }

    /// This clouds.yaml, and what lies beside it.
    pub(crate) fn beside(file: &Path) -> Self {
        let folder = [file.parent().unwrap_or(Path::new("")).to_owned()];
        Self {
            clouds: Some(file.to_owned()),
            secure: first(&folder, "secure"),
            public: first(&folder, "clouds-public"),
        }
    }

    /// For messages.
    pub(crate) fn shown(&self) -> &Path {
        self.clouds.as_deref().unwrap_or(Path::new("the environment ($OS_AUTH_URL)"))
    }
}

fn first(folders: &[PathBuf], stem: &str) -> Option<PathBuf> {
    let files =
        folders.iter().flat_map(|folder| ["yaml", "yml"].map(|end| folder.join(format!("{stem}.{end}"))));
    files.into_iter().find(|file| file.exists())
}

/// Reads one file as far as `T` goes.
pub(crate) fn read<T: DeserializeOwned>(file: &Path) -> Result<T, CloudsError> {
    let text = std::fs::read_to_string(file)
        .map_err(|source| CloudsError::Unreadable { file: file.to_owned(), source })?;
    // The parser's own message and line would quote the file.
    serde_saphyr::from_str(&text).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        CloudsError::Invalid { file: file.to_owned(), line, column }
    })
}
