//! Create-only writes, raced: several writers want the same key at once, exactly one may win. A store that
//! ignores `If-None-Match`, or looks first and writes afterwards, is found out here and never used.

use bytes::Bytes;

use super::{BackendError, SharedBackend};

/// Why a store may not be used.
#[derive(Debug, thiserror::Error)]
pub enum RaceError {
    #[error(
        "{store} does not honour create-only writes: in round {round} of {rounds}, {winners} of {writers} writers were told that they created the same object\n  hint: use a store whose PUT obeys If-None-Match: * atomically (AWS S3, Ceph RGW 16 or newer, MinIO), or a folder; this store is not used"
    )]
    NotAtomic { store: String, round: usize, rounds: usize, winners: usize, writers: usize },
    #[error(
        "{store} does not honour create-only writes: in round {round} of {rounds} {what}\n  hint: use a store whose PUT obeys If-None-Match: * atomically (AWS S3, Ceph RGW 16 or newer, MinIO), or a folder; this store is not used"
    )]
    NotProven { store: String, round: usize, rounds: usize, what: &'static str },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Races `writers` writers in each of `rounds` rounds on probe objects below `probe/<tag>/`.
///
/// The probes are deleted afterwards where the credentials allow it; where they do not, they stay (a few bytes).
pub async fn race(
    backend: &SharedBackend,
    tag: &str,
    rounds: usize,
    writers: usize,
) -> Result<(), RaceError> {
    for round in 0..rounds {
        let key = format!("probe/{tag}/{round:04}");
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..writers {
            let (backend, key) = (backend.clone(), key.clone());
            tasks.spawn(async move { (writer, backend.create(&key, body(writer)).await) });
        }
        let mut winners = 0;
        let mut winner = None;
        let mut first_error = None;
        while let Some(result) = tasks.join_next().await {
            match result.expect("a probe does not panic") {
                (writer, Ok(_)) => {
                    winners += 1;
                    winner = Some(writer);
                }
                (_, Err(BackendError::Exists { .. })) => {}
                (_, Err(error)) => first_error = Some(error),
            }
        }
        let stored = backend.get(&key).await;
        let _ = backend.delete(&key).await;
        if winners > 1 {
            return Err(RaceError::NotAtomic {
                store: backend.describe(),
                round: round + 1,
                rounds,
                winners,
                writers,
            });
        }
        // Nobody was told that it won: the winner's answer may have been lost, but its object must be there.
        if let (0, Some(error)) = (winners, first_error) {
            return Err(error.into());
        }
        let stored = match stored {
            Err(BackendError::Missing { .. }) => None,
            other => Some(other?.bytes),
        };
        let (round, store) = (round + 1, backend.describe());
        let what = match (winner, stored) {
            (_, None) => "the winner's object is not there",
            (Some(winner), Some(stored)) if stored != body(winner) => {
                "what is stored is not what the winner wrote"
            }
            (None, Some(stored)) if !(0..writers).any(|writer| stored == body(writer)) => {
                "what is stored was written by none of the writers"
            }
            _ => continue,
        };
        return Err(RaceError::NotProven { store, round, rounds, what });
    }
    Ok(())
}

fn body(writer: usize) -> Bytes {
    Bytes::from(format!("{writer}"))
}

/// What a thief with these credentials could do to what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TamperProbe {
    pub can_overwrite: bool,
    pub can_delete: bool,
}

impl TamperProbe {
    /// Both were refused.
    pub fn is_tamper_resistant(self) -> bool {
        !self.can_overwrite && !self.can_delete
    }
    pub fn in_words(self) -> &'static str {
        match (self.can_overwrite, self.can_delete) {
            (false, false) => "tamper-resistant: these credentials can neither overwrite nor delete",
            (true, true) => "NOT tamper-resistant: these credentials can overwrite and delete what is stored",
            (true, false) => "NOT tamper-resistant: these credentials can overwrite what is stored",
            (false, true) => "NOT tamper-resistant: these credentials can delete what is stored",
        }
    }
}

/// Tries to overwrite and to delete a probe object of its own.
pub async fn probe_tampering(backend: &SharedBackend, tag: &str) -> Result<TamperProbe, BackendError> {
    let key = format!("probe/{tag}/tamper");
    backend.create(&key, Bytes::from_static(b"probe")).await?;
    // Only a refusal counts as one: a store that did not answer has refused nothing.
    let refused = |result: Result<(), BackendError>| match result {
        Ok(()) => Ok(false),
        Err(BackendError::Denied { .. }) => Ok(true),
        Err(other) => Err(other),
    };
    let can_overwrite = !refused(backend.try_overwrite(&key, Bytes::from_static(b"overwritten")).await)?;
    let can_delete = !refused(backend.delete(&key).await)?;
    Ok(TamperProbe { can_overwrite, can_delete })
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use async_trait::async_trait;
    use farsite_model::StoreTime;

    use super::super::folder::Folder;
    use super::super::{Backend, Listed, Object};
    use super::*;

    /// A store that takes every write: what an S3 server does that ignores `If-None-Match`.
    struct Careless(Folder);

    #[async_trait]
    impl Backend for Careless {
        fn describe(&self) -> String {
            "careless store".into()
        }
        fn clock_grain_ms(&self) -> u64 {
            10
        }
        async fn time(&self) -> Result<StoreTime, BackendError> {
            self.0.time().await
        }
        async fn create(&self, key: &str, bytes: Bytes) -> Result<StoreTime, BackendError> {
            match self.0.create(key, bytes).await {
                Err(BackendError::Exists { .. }) => self.0.time().await,
                other => other,
            }
        }
        async fn get(&self, key: &str) -> Result<Object, BackendError> {
            self.0.get(key).await
        }
        async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
            self.0.get_range(key, range).await
        }
        async fn size(&self, key: &str) -> Result<u64, BackendError> {
            self.0.size(key).await
        }
        async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, BackendError> {
            self.0.list(prefix, after).await
        }
        async fn delete(&self, key: &str) -> Result<(), BackendError> {
            self.0.delete(key).await
        }
        async fn try_overwrite(&self, key: &str, bytes: Bytes) -> Result<(), BackendError> {
            self.0.try_overwrite(key, bytes).await
        }
    }

    #[tokio::test]
    async fn a_store_that_ignores_create_only_is_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let careless: SharedBackend = Arc::new(Careless(Folder::open(dir.path()).unwrap()));
        let error = race(&careless, "t", 3, 4).await.unwrap_err().to_string();
        assert!(error.contains("does not honour create-only writes") && error.contains("hint"), "{error}");
    }

    #[tokio::test]
    async fn a_folder_has_one_winner_in_every_round() {
        let dir = tempfile::tempdir().unwrap();
        let folder: SharedBackend = Arc::new(Folder::open(dir.path()).unwrap());
        race(&folder, "t", 20, 8).await.unwrap();
        let probe = probe_tampering(&folder, "t").await.unwrap();
        assert!(!probe.is_tamper_resistant(), "a plain folder can be overwritten, and that is said");
    }
}
