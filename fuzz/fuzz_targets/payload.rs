//! Any bytes as payloads of records.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skeinmesh::testing::fuzz::payload(data));
