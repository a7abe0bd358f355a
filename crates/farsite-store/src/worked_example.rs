//! The worked example of `docs/store-format.md`: the same bytes, made by the code. When this test fails, the format has
//! changed: give it a new version, or put the change back.

use farsite_model::{GroupName, SiteName, StoreTime};

use crate::blob;
use crate::chain::{Envelope, GENESIS};
use crate::hex::{self, Hex};
use crate::keys::{BlockSecret, SecretText, Signer};
use crate::ledger::Statement;
use crate::pack::{self, PackBuilder};
use crate::seal::{BlobKind, Sealer};
use crate::signed::{self, Kind};

const STORE: Hex<16> = Hex([0x44; 16]);
const CONTENT_KEY_ID: Hex<16> = Hex([0xcc; 16]);
const PACK: Hex<16> = Hex([0xaa; 16]);

/// Sixteen bytes a line, the offset before them.
fn dump(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).enumerate().map(|(line, chunk)| {
        let digits: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:04x}  {}", line * 16, digits.join(" "))
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn signer() -> Signer {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let text = format!("FARSITE-SIGNING-KEY-1-{}", hex::encode(&[0x33; 32]));
    SecretText::new(text).write_new(&path, "the key of the example").unwrap();
    Signer::load(&path).unwrap()
}

/// The parts of the example, in the order of the document.
fn parts() -> Vec<(&'static str, String)> {
    let raw = b"sixteen bytes ok";
    let id = BlockSecret::from_bytes([0x22; 32]).block_id(raw);
    let blob = blob::encode(raw, 3);
    let sealer = Sealer::known(CONTENT_KEY_ID, &[0x11; 32]);
    let sealed = sealer.seal(BlobKind::Block, &id.0, &blob);
    let mut builder = PackBuilder::with_id(PACK, CONTENT_KEY_ID, 0);
    let at = builder.push(BlobKind::Block, id, &sealed, None);
    let finished = builder.finish(&sealer);

    let time = "2026-11-24T03:00:00Z".parse().unwrap();
    let envelope = Envelope {
        version: 1,
        number: 0,
        prev: GENESIS,
        nonce: Hex([0x01; 8]),
        store_time: StoreTime(time),
        at: time,
        says: Statement::GroupFounded {
            group: GroupName::new("cloud").unwrap(),
            primary: SiteName::new("north").unwrap(),
        },
    };
    let body = serde_json::to_vec(&envelope).unwrap();
    let key = "ledger/cloud/0000000000000000";
    let entry = signed::seal(&signer(), Kind::Ledger, &STORE, key, &body);
    vec![
        ("block id", id.to_string()),
        ("blob", dump(&blob)),
        ("sealed blob", dump(&sealed)),
        ("location", dump(&at.to_bytes())),
        ("pack key", pack::object_key(&PACK)),
        ("pack", dump(&finished.bytes)),
        ("public key", signer().public().to_string()),
        ("ledger entry", String::from_utf8(entry.to_vec()).unwrap()),
        ("hash of the entry", blake3::hash(&entry).to_hex().to_string()),
    ]
}

#[test]
fn the_worked_example_of_the_document_is_what_the_code_writes() {
    let document = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/store-format.md");
    let text = std::fs::read_to_string(&document).unwrap();
    let missing: Vec<String> = parts()
        .into_iter()
        .filter(|(_, expected)| !text.contains(expected))
        .map(|(what, expected)| format!("{what}:\n{expected}"))
        .collect();
    assert!(missing.is_empty(), "docs/store-format.md must show:\n{}", missing.join("\n"));
}
