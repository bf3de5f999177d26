//! Messages as they were when their format was fixed: they are read for ever, and what a reader of that
//! time looks for is still said. The tables of docs/wire.md are made of them.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::*;
use crate::testing::kept_fixture;

/// Of each number in front of a sample of `wire`.
const NAMES: [&str; samples::KINDS] = [
    "Hello",
    "Subscribe",
    "Subscribed",
    "Append",
    "Ack",
    "Seal",
    "Sealed",
    "Mark",
    "SnapshotRequest",
    "SnapshotOffer",
    "SnapshotWanted",
    "ReadRequest",
    "ReadResponse",
    "ForwardRequest",
    "ForwardResponse",
    "HttpRequest",
    "Part",
    "ViewRequest",
    "ViewFrame",
    "StatusRequest",
    "NodeStatus",
    "Command",
];

/// Parts of many messages, and the fields by which they are known.
const PARTS: [(&str, &[&str]); 8] = [
    ("member", &["spki", "serial", "role"]),
    ("office", &["epoch", "node", "boot", "membership"]),
    ("recovery", &["generation", "by", "kept"]),
    ("addresses", &["mesh", "http"]),
    ("change", &["term", "index"]),
    ("ipv4", &["V4"]),
    ("ipv6", &["V6"]),
    ("position", &["epoch", "seq"]),
];

/// What a message says, whatever its type.
#[derive(Debug, Clone, PartialEq)]
enum Tree {
    Nil,
    Bool(bool),
    Int(i128),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Tree>),
    Map(BTreeMap<String, Tree>),
}

impl Tree {
    fn of(bytes: &[u8]) -> Self {
        rmp_serde::from_slice(bytes).unwrap_or_else(|e| panic!("{e}: {bytes:02x?}"))
    }

    /// True if `newer` says all of this: it may have more fields, and none that is another.
    fn is_within(&self, newer: &Self) -> bool {
        match (self, newer) {
            (Self::Map(old), Self::Map(new)) => {
                old.iter().all(|(key, value)| new.get(key).is_some_and(|new| value.is_within(new)))
            }
            (Self::List(old), Self::List(new)) => {
                old.len() == new.len() && old.iter().zip(new).all(|(old, new)| old.is_within(new))
            }
            (old, new) => old == new,
        }
    }

    /// Its form in MessagePack, for the table. What is met in many places has a row of its own there.
    fn form(&self, parts: &mut BTreeMap<&'static str, String>) -> String {
        match self {
            Self::Nil => "nil".into(),
            Self::Bool(_) => "bool".into(),
            Self::Int(_) => "int".into(),
            Self::Text(_) => "str".into(),
            // Ids, keys and hashes, signatures.
            Self::Bytes(bytes) if [16, 32, 64].contains(&bytes.len()) => format!("bin {}", bytes.len()),
            Self::Bytes(_) => "bin".into(),
            Self::List(items) => {
                let mut forms: Vec<String> = items.iter().map(|item| item.form(parts)).collect();
                forms.dedup();
                format!("[{}]", forms.join(", "))
            }
            Self::Map(fields) => {
                let spelled: Vec<String> = fields
                    .iter()
                    .map(|(key, value)| format!("{}: {}", kind(key), value.form(parts)))
                    .collect();
                let spelled = format!("{{{}}}", spelled.join(", "));
                let has = |keys: &[&str]| keys.iter().all(|key| fields.contains_key(*key));
                match PARTS.iter().find(|(_, keys)| has(keys)) {
                    Some((name, _)) => {
                        parts.insert(name, spelled);
                        (*name).to_owned()
                    }
                    None => spelled,
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Tree;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a message")
    }
    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nil)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Int(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Int(value.into()))
    }
    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }
    fn visit_bytes<E>(self, value: &[u8]) -> Result<Tree, E> {
        Ok(Tree::Bytes(value.to_vec()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Tree, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = fields.next_entry::<Tree, Tree>()? {
            let key = match key {
                Tree::Text(name) => name,
                other => format!("{}#{other:?}", other.form(&mut BTreeMap::new())),
            };
            map.insert(key, value);
        }
        Ok(Tree::Map(map))
    }
}

/// The name of a field; of a key that is none its form, without what it is.
fn kind(key: &str) -> &str {
    key.split_once('#').map_or(key, |(form, _)| form)
}

/// Behind their lengths (4 bytes, big-endian).
fn joined(samples: &[Vec<u8>]) -> Vec<u8> {
    samples.iter().flat_map(|sample| [&(sample.len() as u32).to_be_bytes(), &sample[..]].concat()).collect()
}

fn parted(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let (sample, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        samples.push(sample.to_vec());
        bytes = rest;
    }
    samples
}

#[test]
fn what_was_said_in_version_1_is_understood_and_still_said() {
    let today = samples("wire");
    let kept = parted(&kept_fixture("wire/messages", &joined(&today)));
    assert!(kept.len() >= 32);
    for (at, sample) in kept.iter().enumerate() {
        let (kind, bytes) = (usize::from(sample[0]), &sample[1..]);
        let what = format!("{} (message {at})", NAMES[kind]);
        let old = Tree::of(bytes);
        let again = READERS[kind](bytes).unwrap_or_else(|| panic!("{what} is not understood any more"));
        assert!(old.is_within(&Tree::of(&again)), "{what}: some of it is not understood any more");
        // New samples come behind the old ones.
        assert_eq!(today[at][0], sample[0], "{what}");
        let now = Tree::of(&today[at][1..]);
        assert!(old.is_within(&now), "{what}: a node of version 1 misses something\n{old:?}\n{now:?}");
    }
}

#[test]
fn the_table_of_messages_is_that_of_the_documentation() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/wire.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let (mut rows, mut parts) = (Vec::new(), BTreeMap::new());
    for sample in samples("wire") {
        let form = Tree::of(&sample[1..]).form(&mut parts);
        rows.push(format!("| `{}` | {form} |", NAMES[usize::from(sample[0])]));
    }
    rows.extend(parts.iter().map(|(name, form)| format!("| *{name}* | {form} |")));
    let (_, table) = docs.split_once("| message or *part* | form |\n").unwrap();
    let told: Vec<&str> = table.lines().skip(1).take_while(|line| line.starts_with('|')).collect();
    assert_eq!(told, rows, "docs/wire.md wants:\n{}", rows.join("\n"));
}
