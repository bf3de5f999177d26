//! Bytes that were written once and must stay readable: `tests/fixtures/format-1/`.

use std::path::PathBuf;

/// Where a fixture lies.
fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1").join(name)
}

/// The bytes of a fixture.
///
/// # Panics
/// It is not there.
pub fn read_fixture(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Compares bytes that were made just now with a fixture. A format is changed with a new version
/// number and a new directory, never by changing a fixture; `SKEIN_FIXTURES=write` writes one that
/// is **not there yet**.
///
/// # Panics
/// They differ: the first place is named.
pub fn fixture(name: &str, made: &[u8]) {
    let kept = kept_fixture(name, made);
    let differs = kept.iter().zip(made).position(|(kept, made)| kept != made);
    assert_eq!((kept.len(), differs), (made.len(), None), "{name}: length, and first byte that differs");
}

/// The bytes of a fixture whose format says the same in more than one way: these, if it is **not there
/// yet** and `SKEIN_FIXTURES=write` says so.
///
/// # Panics
/// It is not there.
pub fn kept_fixture(name: &str, made: &[u8]) -> Vec<u8> {
    let path = path(name);
    if !path.exists() && std::env::var_os("SKEIN_FIXTURES").is_some_and(|mode| mode == "write") {
        std::fs::create_dir_all(path.parent().unwrap_or(&path))
            .and_then(|()| std::fs::write(&path, made))
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    read_fixture(name)
}
