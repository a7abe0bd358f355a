//! A new replica store: its keys, who gets which, and the format object. An empty place comes in; key files in one folder
//! for each machine go out, and the format object last of all, so that a founding that fails leaves no store.
//! `farsite init` and the demo both come through here.

use std::path::{Path, PathBuf};

use farsite_model::SiteName;
use farsite_store::StoreError;
use farsite_store::backend::race::{TamperProbe, probe_tampering, race};
use farsite_store::backend::{BackendError, SharedBackend};
use farsite_store::format::{FORMAT_KEY, Format};
use farsite_store::hex::Hex;
use farsite_store::keys::{BlockSecret, KeyRole, Role, SecretText, Signer, generate_identity};
use jiff::Timestamp;
use serde::Serialize;

use crate::failure::Failure;

/// Rounds and writers of the race that decides whether a place can be a replica store.
pub const RACE_ROUNDS: usize = 32;
pub const RACE_WRITERS: usize = 8;

/// File names below a machine's folder.
pub const SOURCE_AGENT_KEY: &str = "source-agent.key";
pub const BLOCK_SECRET: &str = "block.secret";
pub const STANDBY_AGENT_KEY: &str = "standby-agent.key";
pub const OPERATOR_KEY: &str = "operator.key";
pub const RECOVERY_IDENTITY: &str = "recovery.identity";

/// Where each machine's files are collected.
#[derive(Debug, Clone)]
pub struct Founding {
    /// The site that is protected.
    pub source: SiteName,
    /// The site of the store.
    pub standby: SiteName,
    /// Holds one folder for each machine.
    pub out: PathBuf,
    pub single_recipient: bool,
    /// Where the source's keys lie already: one more standby is founded for the same agents. None: they are made.
    pub source_keys: Option<PathBuf>,
}

/// A key file, and who it is for.
#[derive(Debug, Clone, Serialize)]
pub struct KeyFile {
    /// The machine, as its folder is called.
    pub machine: String,
    pub path: PathBuf,
    pub what: String,
}

/// What was founded. No secret stands in here.
#[derive(Debug, Clone, Serialize)]
pub struct Founded {
    pub store: String,
    /// Fingerprint of the format object: configurations pin it.
    pub id: String,
    pub recipients: Vec<String>,
    pub files: Vec<KeyFile>,
    #[serde(skip)]
    pub tamper: Option<TamperProbe>,
}

impl Founding {
    pub fn source_dir(&self) -> PathBuf {
        self.out.join(self.source.as_str())
    }
    pub fn standby_dir(&self) -> PathBuf {
        self.out.join(self.standby.as_str())
    }
    pub fn operator_dir(&self) -> PathBuf {
        self.out.join("operator")
    }
    /// File name of the identity that opens the store.
    pub fn identity_name(&self) -> String {
        format!("{}.identity", self.standby)
    }

    /// Proves that the place can be a store and is none yet. Changes nothing that stays.
    pub async fn prove(&self, backend: &SharedBackend) -> Result<TamperProbe, Failure> {
        match backend.get(FORMAT_KEY).await {
            Ok(_) => return Err(StoreError::AlreadyInitialised { store: backend.describe() }.into()),
            Err(BackendError::Missing { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        let tag = Hex::<8>::random().to_string();
        race(backend, &tag, RACE_ROUNDS, RACE_WRITERS).await.map_err(StoreError::from)?;
        Ok(probe_tampering(backend, &tag).await?)
    }

    /// Makes keys, lets `prepare` write what goes with them, and creates the format object. When anything fails before
    /// that, the files written here are removed again.
    pub async fn found(
        &self,
        backend: &SharedBackend,
        prepare: impl FnOnce(&Founded) -> Result<(), Failure>,
    ) -> Result<Founded, Failure> {
        let tamper = self.prove(backend).await?;
        let mut written = Written::default();
        let result = self.write(backend, tamper, &mut written, prepare).await;
        if result.is_err() {
            written.remove();
        }
        result
    }

    async fn write(
        &self,
        backend: &SharedBackend,
        tamper: TamperProbe,
        written: &mut Written,
        prepare: impl FnOnce(&Founded) -> Result<(), Failure>,
    ) -> Result<Founded, Failure> {
        let (source, standby) = (&self.source, &self.standby);
        let (source_dir, standby_dir, operator_dir) =
            (self.source_dir(), self.standby_dir(), self.operator_dir());
        let mut recipients = Vec::new();

        let (source_signer, secret) = if let Some(folder) = &self.source_keys {
            (Signer::load(&folder.join(SOURCE_AGENT_KEY))?, BlockSecret::load(&folder.join(BLOCK_SECRET))?)
        } else {
            let (signer, text) = Signer::generate();
            let what = format!("signs recovery points of {source}; opens nothing");
            written.key(&text, source.as_str(), &source_dir.join(SOURCE_AGENT_KEY), &what)?;
            let (secret, text) = BlockSecret::generate();
            let what = "computes block ids, shared by the agents of the source site; opens nothing";
            written.key(&text, source.as_str(), &source_dir.join(BLOCK_SECRET), what)?;
            (signer, secret)
        };

        let (standby_signer, text) = Signer::generate();
        let what = format!("signs proofs and collection at {standby}");
        written.key(&text, standby.as_str(), &standby_dir.join(STANDBY_AGENT_KEY), &what)?;
        let (text, recipient) = generate_identity();
        recipients.push(recipient);
        let what = format!("OPENS the store at {standby}; belongs on no machine of {source}");
        written.key(&text, standby.as_str(), &standby_dir.join(self.identity_name()), &what)?;

        let (operator_signer, operator_text) = Signer::generate();
        let what = "signs failovers: whoever holds it can promote the standby";
        written.key(&operator_text, "operator", &operator_dir.join(OPERATOR_KEY), what)?;
        // Whoever fails over must open what is stored, from a machine that may not be the agent's.
        let what = format!("OPENS the store at {standby}: the same identity as the standby's");
        written.key(&text, "operator", &operator_dir.join(self.identity_name()), &what)?;

        if !self.single_recipient {
            let (text, recipient) = generate_identity();
            recipients.push(recipient);
            let what = "OPENS the store when the standby's identity is lost; print it or lock it away, on no machine";
            written.key(&text, "offline", &self.out.join("offline").join(RECOVERY_IDENTITY), what)?;
        }

        let role = |signer: &Signer, role, site: Option<&SiteName>, name: String| KeyRole {
            key: signer.public(),
            role,
            site: site.cloned(),
            name,
        };
        let keys = vec![
            role(&source_signer, Role::SourceAgent, Some(source), format!("agent at {source}")),
            role(&standby_signer, Role::StandbyAgent, Some(standby), format!("agent at {standby}")),
            role(&operator_signer, Role::Operator, None, "operator".to_owned()),
        ];
        let format = Format::new(recipients.clone(), keys, &secret, Timestamp::now())?;
        // The fingerprint stands in the configurations, which are written before the store exists.
        let bytes = serde_json::to_vec_pretty(&format)
            .map_err(|error| Failure::failed(format!("the format object is not JSON: {error}")))?;
        let id = Format::fingerprint(&bytes);
        let founded = Founded {
            store: backend.describe(),
            id: id.to_string(),
            recipients,
            files: written.files.clone(),
            tamper: Some(tamper),
        };
        written.sync()?;
        prepare(&founded)?;
        match format.create(backend).await {
            Ok(made) if made == id => Ok(founded),
            Ok(made) => Err(Failure::failed(format!("the format object is {made}, expected {id}"))),
            // The answer was lost: whose object is there decides.
            Err(
                StoreError::Backend(BackendError::Uncertain { .. }) | StoreError::AlreadyInitialised { .. },
            ) if matches!(Format::read(backend, Some(&id)).await, Ok((_, found)) if found == id) => {
                Ok(founded)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Files of this founding, so that a failed one can take them back.
#[derive(Default)]
struct Written {
    files: Vec<KeyFile>,
}

impl Written {
    fn key(&mut self, text: &SecretText, machine: &str, path: &Path, what: &str) -> Result<(), Failure> {
        text.write_new(path, what)?;
        self.files.push(KeyFile {
            machine: machine.to_owned(),
            path: path.to_owned(),
            what: what.to_owned(),
        });
        Ok(())
    }

    /// The keys are durable before anything is sealed for them.
    fn sync(&self) -> Result<(), Failure> {
        for folder in self.folders() {
            std::fs::File::open(&folder)
                .and_then(|dir| dir.sync_all())
                .map_err(Failure::io(format!("syncing {}", folder.display())))?;
        }
        Ok(())
    }

    fn folders(&self) -> std::collections::BTreeSet<PathBuf> {
        self.files.iter().filter_map(|file| file.path.parent().map(Path::to_owned)).collect()
    }

    fn remove(&self) {
        for file in &self.files {
            let _ = std::fs::remove_file(&file.path);
        }
        // Folders go only when nothing else is in them.
        for folder in self.folders() {
            let _ = std::fs::remove_dir(folder);
        }
    }
}
