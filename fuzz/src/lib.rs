//! What must hold for any input; each target of libFuzzer calls one function of this crate.
//!
//! Holds: `codec` (packets one by one), `stream` (bytes cut into reads), `websocket`, `session` (the broker core with a
//! host and clients), `upload` (the cloud's door for edges). In: the fuzzer's bytes. Out: nothing, or a panic that says which promise broke.
//! Change here: a promise about input. Not here: how targets are built and run (`scripts/fuzz`), seeds (`seeds/`).

pub mod codec;
pub mod input;
pub mod session;
pub mod stream;
pub mod upload;
pub mod websocket;

// The session's model store of the unit tests is compiled in here, too (`session`), and looks for these in its crate.
pub(crate) use tributary_shared::{message, mqtt, record};
