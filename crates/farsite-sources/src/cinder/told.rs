//! What a point says of a volume beside its data: what it was made from, and whether a key is needed to read it. What must hold:
//! what the cloud did not tell is not taken for a no.

use std::path::Path;

use farsite_model::content::ReadAt;
use farsite_model::{ItemId, ItemKind};
use farsite_openstack::{MadeFrom, SiteCloud};

use super::chosen::{disk_of, file_of};
use crate::volume::blocking;
use crate::{Capture, Content, SourceError};

/// The key in a volume's details that says how it is encrypted, where it is.
pub const ENCRYPTED: &str = "encrypted";
/// By Cinder, as that tells.
pub const ENCRYPTED_BY_CINDER: &str = "cinder";
/// It begins as such volumes do, and the cloud did not tell: by Cinder, or by its guest.
pub const ENCRYPTED_BY_SOMEBODY: &str = "luks";
/// The key in an encrypted volume's details with the items that hold its keys, as the policy says: a list in JSON.
pub const ENCRYPTION_KEYS: &str = "encryption-keys";

/// How LUKS 1 and 2 begin (LUKS1 On-Disk Format Specification, 1.2.3; LUKS2 On-Disk Format Specification, 1.1.4).
const LUKS: [u8; 6] = *b"LUKS\xba\xbe";

/// What the cloud told of a volume.
#[derive(Debug, Default)]
pub(super) struct Facts {
    made_from: Option<ItemId>,
    is_encrypted: Option<bool>,
}

impl Facts {
    /// Asks for the volume whose file or image is called `name`, in `folder` where it is a file.
    pub(super) async fn ask(cloud: &SiteCloud, folder: Option<&Path>, name: &str) -> Self {
        let is_here = |file: &str| folder.is_none_or(|folder| folder.join(file).exists());
        let Some((id, ending)) = disk_of(name) else { return Self::default() };
        let told = cloud.told_of(id).await;
        let mut items: Vec<(bool, ItemId)> = told
            .made_from
            .iter()
            .map(|made_from| match made_from {
                MadeFrom::Volume(id) => {
                    let file = file_of(id, ending);
                    (is_here(&file), ItemId::new(ItemKind::Cinder, &file))
                }
                MadeFrom::Image(id) => (true, ItemId::new(ItemKind::Glance, id)),
            })
            .collect();
        // The nearest that is here too, else its image.
        let at = items.iter().position(|(is_here, _)| *is_here).unwrap_or(0);
        let made_from = (!items.is_empty()).then(|| items.swap_remove(at).1);
        Self { made_from, is_encrypted: told.is_encrypted }
    }

    /// The capture with what is known.
    pub(super) async fn note(self, mut capture: Capture, keys: &[String]) -> Result<Capture, SourceError> {
        capture.ancestor = capture.ancestor.or(self.made_from);
        let encrypted = match (self.is_encrypted, &capture.content) {
            (Some(true), _) => Some(ENCRYPTED_BY_CINDER),
            (None, Content::Volume(content)) => {
                let content = content.clone();
                blocking(move || Ok(is_luks(&*content))).await?.then_some(ENCRYPTED_BY_SOMEBODY)
            }
            _ => None,
        };
        if let Some(how) = encrypted {
            capture.details.insert(ENCRYPTED.to_owned(), how.to_owned());
            if !keys.is_empty() {
                capture
                    .details
                    .insert(ENCRYPTION_KEYS.to_owned(), serde_json::Value::from(keys.to_vec()).to_string());
            }
        }
        Ok(capture)
    }
}

/// What cannot be read here is read again, and heard of, with the rest.
fn is_luks(content: &dyn ReadAt) -> bool {
    let mut begin = [0; LUKS.len()];
    content.size_bytes() >= begin.len() as u64
        && content.read_exact_at(&mut begin, 0).is_ok()
        && begin == LUKS
}
