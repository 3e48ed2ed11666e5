//! SUBSCRIBE, UNSUBSCRIBE and their answers. What must hold stands in `tributary_fuzz::codec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tributary_fuzz::codec::family(data, &[8, 9, 10, 11]));
