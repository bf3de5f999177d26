//! Any bytes as MessagePack in the shapes of clients.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skeinmesh::testing::fuzz::packed(data));
