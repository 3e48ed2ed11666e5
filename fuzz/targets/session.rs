//! Three clients, a host that restarts, and the broker core. What must hold stands in `tributary_fuzz::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tributary_fuzz::session::scenario(data));
