//! What an edge uploads to the cloud. What must hold stands in `tributary_fuzz::upload`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tributary_fuzz::upload::read(data));
