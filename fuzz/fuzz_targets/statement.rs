//! Any bytes as statements, before they are planned.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skeinmesh::testing::fuzz::statement(data));
