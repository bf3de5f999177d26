//! Any bytes as messages between members.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skeinmesh::testing::fuzz::wire(data));
