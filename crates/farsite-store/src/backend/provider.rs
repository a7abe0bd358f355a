//! What a store's provider offers beyond the small interface, and what that means: what was asked comes in, sentences for
//! `farsite check` go out. What could not be asked is said to be unknown, never taken for fine.

/// Whether the bucket keeps what was overwritten or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Versioning {
    On,
    Suspended,
    Off,
    /// The provider or these credentials' rights gave no answer.
    NotTold(String),
}

/// Whether objects can be locked against deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectLock {
    Off,
    /// With the retention that the bucket sets by itself, in words.
    On {
        default: Option<String>,
    },
    NotTold(String),
}

/// How packs larger than two parts go up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LargeUploads {
    /// In parts: the completion obeys `If-None-Match`.
    InParts,
    /// In one piece: the completion of an upload in parts would overwrite.
    Whole,
    /// In one piece: the URL says so.
    WholeByChoice,
    NotTold(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    pub versioning: Versioning,
    pub object_lock: ObjectLock,
    /// The retention that is set on write, in words.
    pub lock_on_write: Option<String>,
    pub large_uploads: LargeUploads,
    pub checksums: &'static str,
}

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    Fine,
    /// Works, and somebody should know.
    Warning,
    /// What was configured does not work.
    Wrong,
}

/// One line of `farsite check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub subject: &'static str,
    pub weight: Weight,
    pub says: String,
}

impl Provider {
    pub fn findings(&self) -> Vec<Finding> {
        let finding = |subject, weight, says: String| Finding { subject, weight, says };
        vec![
            match &self.versioning {
                Versioning::On => finding(
                    "versioning",
                    Weight::Fine,
                    "on: what is deleted or overwritten stays as an older version; a lifecycle rule has to remove old versions in the end".into(),
                ),
                Versioning::Suspended | Versioning::Off => finding(
                    "versioning",
                    Weight::Fine,
                    "off: what is deleted is gone at once; only the rights of credentials protect it".into(),
                ),
                Versioning::NotTold(why) => {
                    finding("versioning", Weight::Fine, format!("not known with these credentials: {why}"))
                }
            },
            self.lock(),
            match &self.large_uploads {
                LargeUploads::InParts => finding(
                    "large uploads",
                    Weight::Fine,
                    "in parts, several at once: the completion obeys create-only".into(),
                ),
                LargeUploads::Whole => finding(
                    "large uploads",
                    Weight::Fine,
                    "in one piece: the provider does not offer uploads in parts whose completion obeys create-only, or these credentials may not use them".into(),
                ),
                LargeUploads::WholeByChoice => {
                    finding("large uploads", Weight::Fine, "in one piece: multipart=off".into())
                }
                LargeUploads::NotTold(why) => finding(
                    "large uploads",
                    Weight::Warning,
                    format!("in one piece, as whether the completion obeys create-only is not known: {why}"),
                ),
            },
            finding("checksums", Weight::Fine, self.checksums.into()),
        ]
    }

    fn lock(&self) -> Finding {
        let finding = |weight, says: String| Finding { subject: "object lock", weight, says };
        match (&self.object_lock, &self.lock_on_write) {
            (ObjectLock::On { .. }, Some(ours)) => {
                finding(Weight::Fine, format!("on; every object is locked for {ours} when it is written"))
            }
            (ObjectLock::On { default: Some(default) }, None) => {
                finding(Weight::Fine, format!("on; the bucket locks every object for {default}"))
            }
            (ObjectLock::On { default: None }, None) => finding(
                Weight::Warning,
                "available, and nothing is locked: the bucket has no default retention and the store's URL no lock=…".into(),
            ),
            (ObjectLock::Off, None) => finding(
                Weight::Fine,
                "off: whoever has the right to delete can delete, whatever its age".into(),
            ),
            (ObjectLock::Off, Some(ours)) => finding(
                Weight::Wrong,
                format!(
                    "the URL asks for {ours}, and the bucket has no Object Lock: writes will fail\n  hint: make a bucket with Object Lock, or take lock=… out of the store's URL"
                ),
            ),
            (ObjectLock::NotTold(why), None) => {
                finding(Weight::Fine, format!("not known with these credentials: {why}"))
            }
            (ObjectLock::NotTold(why), Some(ours)) => finding(
                Weight::Warning,
                format!("the URL asks for {ours}; whether the bucket can is not known with these credentials: {why}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(object_lock: ObjectLock, lock_on_write: Option<&str>) -> Provider {
        Provider {
            versioning: Versioning::Off,
            object_lock,
            lock_on_write: lock_on_write.map(str::to_owned),
            large_uploads: LargeUploads::InParts,
            checksums: "none",
        }
    }

    #[test]
    fn a_lock_that_the_bucket_cannot_give_is_wrong_and_one_that_nobody_asks_for_is_said() {
        let weight = |provider: Provider| {
            provider.findings().into_iter().find(|f| f.subject == "object lock").unwrap().weight
        };
        assert_eq!(weight(provider(ObjectLock::Off, Some("30d"))), Weight::Wrong);
        assert_eq!(weight(provider(ObjectLock::NotTold("denied".into()), Some("30d"))), Weight::Warning);
        assert_eq!(weight(provider(ObjectLock::On { default: None }, None)), Weight::Warning);
        assert_eq!(weight(provider(ObjectLock::On { default: None }, Some("30d"))), Weight::Fine);
    }
}
