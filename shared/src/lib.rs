//! What edge and cloud have in common. Pure where it can be: `record`, `topic`, `mqtt`, `session` know no I/O.
//!
//! Reading order = the path of a message: `net` accepts, `connection` reads packets (`mqtt`), `session` decides,
//! the host stores a `record`.

pub mod amqp;
pub mod auth;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod connection;
pub mod enrol;
pub mod message;
pub mod mqtt;
pub mod net;
pub mod program;
pub mod recent;
pub mod record;
pub mod session;
pub mod tasks;
pub mod telemetry;
pub mod topic;
