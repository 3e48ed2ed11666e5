//! PUBLISH and its four acknowledgements. What must hold stands in `tributary_fuzz::codec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tributary_fuzz::codec::family(data, &[3, 4, 5, 6, 7]));
