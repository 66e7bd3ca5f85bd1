//! docs/methods.md says what the code says; `NEPENTHE_BLESS=1 cargo test --test methods_page` regenerates it.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use nepenthe::method::{FORGET, Knobs, PENALTIES, page};
use serde_json::Value;

#[test]
fn page_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/methods.md");
    if std::env::var_os("NEPENTHE_BLESS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(found == page(), "docs/methods.md is old: write it with NEPENTHE_BLESS=1");
}

/// A knob that no method reads, or a key that is no knob, would mislead whoever reads the page.
#[test]
fn every_knob_is_read_by_a_method_and_every_key_is_a_knob() {
    let knobs = serde_json::to_value(Knobs::default()).unwrap();
    let Value::Object(knobs) = knobs else { unreachable!() };
    let keys: Vec<&str> = FORGET.iter().chain(&PENALTIES).flat_map(|o| o.keys()).copied().collect();
    for key in &keys {
        assert!(knobs.contains_key(*key), "{key}");
    }
    for knob in knobs.keys() {
        assert!(keys.contains(&knob.as_str()), "{knob}");
    }
}

#[test]
fn names_differ() {
    for table in [&FORGET[..], &PENALTIES[..]] {
        for (i, objective) in table.iter().enumerate() {
            assert!(table[..i].iter().all(|other| other.name() != objective.name()));
        }
    }
}
