//! The upgrade of a WebSocket and its frames. What must hold stands in `tributary_fuzz::websocket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tributary_fuzz::websocket::peer(data));
