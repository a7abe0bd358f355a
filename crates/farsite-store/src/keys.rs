//! The keys of a store, each in its own file: signing keys (operator, standby agent, source agent), the block
//! secret, and the identity that opens. No file holds more than one machine needs.
//!
//! A key file is text: comment lines starting with `#`, then one line with the key.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::hex::{self, Hex};

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("key file {}: {why}\n  hint: {hint}", path.display())]
    File { path: PathBuf, why: String, hint: &'static str },
    #[error("{0}")]
    Invalid(String),
}

/// First half of the hash of a public key: names the signer in every signed object.
pub type KeyId = Hex<8>;
/// An Ed25519 public key.
pub type PublicKey = Hex<32>;

pub fn key_id(public: &PublicKey) -> KeyId {
    let hash = blake3::hash(&public.0);
    Hex(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

/// A signing key in memory.
pub struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.key_id())
    }
}

const SIGNING_PREFIX: &str = "FARSITE-SIGNING-KEY-1-";
const BLOCK_PREFIX: &str = "FARSITE-BLOCK-SECRET-1-";

impl Signer {
    /// A new key and its secret text.
    pub fn generate() -> (Self, SecretText) {
        let seed = Hex::<32>::random();
        let signer = Self::from_seed(&seed.0).expect("32 random bytes are an Ed25519 seed");
        (signer, SecretText(format!("{SIGNING_PREFIX}{seed}")))
    }

    fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)
            .map_err(|_| KeyError::Invalid("not an Ed25519 seed".into()))?;
        let public = Hex(pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes"));
        Ok(Self { pair, public })
    }

    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = load(path, SIGNING_PREFIX)?;
        let seed: Hex<32> = text.parse().map_err(|why| bad_file(path, why))?;
        Self::from_seed(&seed.0)
    }

    pub fn public(&self) -> PublicKey {
        self.public
    }
    pub fn key_id(&self) -> KeyId {
        key_id(&self.public)
    }
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair.sign(message).as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }
}

pub fn verify(public: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public.0).verify(message, signature).is_ok()
}

/// The agents' shared secret under which block ids are computed. Keys for different kinds of objects are derived, so
/// that a block's id never equals a node's.
#[derive(Clone)]
pub struct BlockSecret {
    secret: [u8; 32],
    block: [u8; 32],
    node: [u8; 32],
    print: [u8; 32],
}

impl fmt::Debug for BlockSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockSecret(***)")
    }
}

/// The id of a block or of a block-map node: keyed BLAKE3 of its logical content.
pub type BlobId = Hex<32>;

/// The id that stands for "nothing but zeros".
pub const HOLE: BlobId = Hex([0; 32]);

impl BlockSecret {
    pub fn from_bytes(secret: [u8; 32]) -> Self {
        Self {
            secret,
            block: blake3::derive_key("farsite 2026 block ids v1", &secret),
            node: blake3::derive_key("farsite 2026 block-map node ids v1", &secret),
            print: blake3::derive_key("farsite 2026 fingerprints v1", &secret),
        }
    }
    pub fn generate() -> (Self, SecretText) {
        let secret = Hex::<32>::random();
        (Self::from_bytes(secret.0), SecretText(format!("{BLOCK_PREFIX}{secret}")))
    }
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let secret: Hex<32> = load(path, BLOCK_PREFIX)?.parse().map_err(|why| bad_file(path, why))?;
        Ok(Self::from_bytes(secret.0))
    }
    /// What goes into a key file.
    pub fn text(&self) -> SecretText {
        SecretText(format!("{BLOCK_PREFIX}{}", Hex(self.secret)))
    }
    pub(crate) fn secret_bytes(&self) -> &[u8; 32] {
        &self.secret
    }
    /// The key of the fingerprints that stay on this host.
    pub(crate) fn print_key(&self) -> &[u8; 32] {
        &self.print
    }
    pub fn block_id(&self, bytes: &[u8]) -> BlobId {
        Hex(*blake3::keyed_hash(&self.block, bytes).as_bytes())
    }
    pub fn node_id(&self, logical: &[u8]) -> BlobId {
        Hex(*blake3::keyed_hash(&self.node, logical).as_bytes())
    }
}

/// What is written into a key file and nowhere else. No Display; Debug hides it.
pub struct SecretText(String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(***)")
    }
}

impl SecretText {
    pub fn new(text: String) -> Self {
        Self(text)
    }
    /// Creates the file with mode 0600; never overwrites one.
    pub fn write_new(&self, path: &Path, comment: &str) -> Result<(), KeyError> {
        let fail = |why: std::io::Error| KeyError::File {
            path: path.to_owned(),
            why: why.to_string(),
            hint: "an existing key file is never overwritten; move it away if you mean to make a new one",
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
        let mut text = String::new();
        for line in comment.lines() {
            text.push_str("# ");
            text.push_str(line);
            text.push('\n');
        }
        text.push_str(&self.0);
        text.push('\n');
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)
    }
}

fn bad_file(path: &Path, why: impl fmt::Display) -> KeyError {
    KeyError::File {
        path: path.to_owned(),
        why: format!("it does not hold the expected key ({why})"),
        hint: "was the file cut, or is it another role's key?",
    }
}

/// Reads a key file that only its owner may read.
fn load(path: &Path, prefix: &str) -> Result<String, KeyError> {
    let text = read_private(path)?;
    let line = key_line(&text);
    line.strip_prefix(prefix)
        .map(str::to_owned)
        .ok_or_else(|| bad_file(path, format!("no line starts with {prefix}…")))
}

fn key_line(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or("")
}

fn read_private(path: &Path) -> Result<String, KeyError> {
    let fail = |why: String, hint| KeyError::File { path: path.to_owned(), why, hint };
    let metadata = fs::metadata(path).map_err(|e| {
        fail(e.to_string(), "`farsite init` makes the keys and says which file goes to which machine")
    })?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(fail(
            format!("others may read it (mode {:o})", metadata.permissions().mode() & 0o777),
            "chmod 600 the file, and consider the key known to whoever could read it",
        ));
    }
    fs::read_to_string(path).map_err(|e| fail(e.to_string(), "check the file's owner"))
}

/// What a key may sign; the format object lists it for every key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRole {
    pub key: PublicKey,
    pub role: Role,
    /// The site that a source agent or a standby agent speaks for; an operator speaks for all.
    pub site: Option<farsite_model::SiteName>,
    /// For people: whose key this is.
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Adds points for its own site; can begin nothing, prove nothing, open nothing.
    SourceAgent,
    /// Proves, expires and collects at its own site.
    StandbyAgent,
    /// A person: begins epochs, holds, moves authority.
    Operator,
}
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SourceAgent => "source agent",
            Self::StandbyAgent => "standby agent",
            Self::Operator => "operator",
        })
    }
}

/// A new age identity: the text for its file, and the recipient that goes into configurations.
pub fn generate_identity() -> (SecretText, String) {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    (SecretText(identity.to_string().expose_secret().to_owned()), recipient)
}

/// Reads every age identity of a private file.
pub fn load_identities(path: &Path) -> Result<Vec<age::x25519::Identity>, KeyError> {
    parse_identities(&read_private(path)?).map_err(|why| bad_file(path, why))
}

/// Reads age identities out of text (a file's, or what a command printed).
pub fn parse_identities(text: &str) -> Result<Vec<age::x25519::Identity>, String> {
    let identities: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::parse::<age::x25519::Identity>)
        .collect::<Result<_, _>>()
        .map_err(str::to_owned)?;
    if identities.is_empty() {
        Err("it holds no age identity (AGE-SECRET-KEY-1…)".into())
    } else {
        Ok(identities)
    }
}

/// Encrypts for all recipients.
pub fn wrap(plaintext: &[u8], recipients: &[String]) -> Result<Vec<u8>, KeyError> {
    let parsed: Vec<age::x25519::Recipient> = recipients
        .iter()
        .map(|text| text.parse().map_err(|why| KeyError::Invalid(format!("recipient {text:?}: {why}"))))
        .collect::<Result<_, _>>()?;
    let encryptor = age::Encryptor::with_recipients(parsed.iter().map(|r| r as &dyn age::Recipient))
        .map_err(|why| KeyError::Invalid(format!("recipients: {why}")))?;
    let mut sealed = Vec::new();
    encryptor
        .wrap_output(&mut sealed)
        .and_then(|mut writer| {
            writer.write_all(plaintext)?;
            writer.finish()
        })
        .map_err(|why| KeyError::Invalid(format!("wrapping a key: {why}")))?;
    Ok(sealed)
}

/// Decrypts with whichever identity fits.
pub fn unwrap(sealed: &[u8], identities: &[age::x25519::Identity]) -> Result<Vec<u8>, KeyError> {
    use std::io::Read;
    let fail = |why: String| KeyError::Invalid(why);
    let decryptor =
        age::Decryptor::new_buffered(sealed).map_err(|e| fail(format!("a wrapped key is damaged: {e}")))?;
    let mut reader = decryptor
        .decrypt(identities.iter().map(|i| i as &dyn age::Identity))
        .map_err(|e| match e {
            age::DecryptError::NoMatchingKeys => {
                fail("this identity is not among the store's recipients: it cannot open what is stored\n  hint: use the identity file that `farsite init` made for this store".into())
            }
            other => fail(format!("a wrapped key cannot be opened: {other}")),
        })?;
    let mut plaintext = Vec::new();
    reader.read_to_end(&mut plaintext).map_err(|e| fail(format!("a wrapped key is damaged: {e}")))?;
    Ok(plaintext)
}

/// Writes a public key's line for people: `operator 3f…`.
pub fn describe(role: &KeyRole) -> String {
    let site = role.site.as_ref().map(|s| format!(" of {s}")).unwrap_or_default();
    format!("{}{site} {} ({})", role.role, hex::encode(&key_id(&role.key).0), role.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_opens_with_any_recipient_and_no_other() {
        let (a, recipient_a) = generate_identity();
        let (b, recipient_b) = generate_identity();
        let (c, _) = generate_identity();
        let sealed = wrap(b"secret", &[recipient_a, recipient_b]).unwrap();
        for text in [&a, &b] {
            assert_eq!(unwrap(&sealed, &parse_identities(&text.0).unwrap()).unwrap(), b"secret");
        }
        let error = unwrap(&sealed, &parse_identities(&c.0).unwrap()).unwrap_err().to_string();
        assert!(error.contains("not among the store's recipients"), "{error}");
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let (signer, text) = Signer::generate();
        text.write_new(&path, "operator").unwrap();
        assert_eq!(Signer::load(&path).unwrap().public(), signer.public());
        assert!(text.write_new(&path, "again").is_err(), "an existing key is never overwritten");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Signer::load(&path).unwrap_err().to_string().contains("chmod 600"));
        assert!(BlockSecret::load(&path).is_err());
    }
}
