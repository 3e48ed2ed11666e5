//! The core as its host and its clients see it: scripted scenarios, and a random model with crashes.

mod answers;
mod connections;
mod delayed;
mod flows;
mod forwarding;
mod holes;
mod legal;
mod limits;
mod memory;
mod model;
mod own;
mod retained;
mod rights;
mod shared;
mod store;
mod subscriptions;
mod topics;
mod v311;
mod wills;
mod world;
