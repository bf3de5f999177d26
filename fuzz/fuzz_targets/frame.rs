//! Any bytes as stream headers and lengths of frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skeinmesh::testing::fuzz::frame(data));
