//! Any bytes as what a stranger says, and what is said to one.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skeinmesh::testing::fuzz::join(data));
