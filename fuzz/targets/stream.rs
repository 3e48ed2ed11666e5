//! Any bytes cut into any reads; DISCONNECT and pings. What must hold stands in `tributary_fuzz::stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tributary_fuzz::stream::cut(data));
