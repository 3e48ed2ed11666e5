//! The cloud: one durable log on an object store, read and written with Kafka, AMQP 0-9-1 and MQTT clients.
//!
//! Heads (`bridge`, `mqtt`, `kafka`, `amqp`) are siblings over `log`; `log` stands on `engine`. Heads never see each other.

pub mod admin;
pub mod amqp;
pub mod app;
pub mod bridge;
pub mod cluster;
pub mod config;
pub mod engine;
pub mod enrol;
pub mod group;
pub mod kafka;
pub mod listen;
pub mod log;
pub mod mqtt;
pub mod peer;
pub mod queue;
pub mod route;
pub mod status;
