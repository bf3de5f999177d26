//! Any bytes as records of the log.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skeinmesh::testing::fuzz::record(data));
