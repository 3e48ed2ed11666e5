//! The edge: an MQTT broker that keeps every message on disk and syncs it upstream.
//!
//! The path of one message: `listen` accepts a device that [`access`] knows, `shared::connection` reads its PUBLISH, [`broker`] lets
//! `shared::session` decide and hands the changes to the [`store`], which commits them with many others in one fsynced
//! SQLite transaction; then the PUBACK goes out. [`uplink`] reads the batch that the commit made, sends it over a
//! [`link`], and moves the mark when the cloud has confirmed it. [`downlink`] brings commands the other way,
//! and settings that [`pushed`] tries. [`admin`] shows
//! the numbers of [`status`], [`sys`] tells them to clients, [`inventory`] to the cloud;
//! [`app`] builds all of it from [`config`], [`notify`] tells systemd; [`command`] is for the person at the terminal.

pub mod access;
pub mod admin;
pub mod app;
pub mod broker;
pub mod command;
pub mod config;
pub mod downlink;
mod enhanced;
pub mod enrol;
mod held;
pub mod inventory;
pub mod lane;
pub mod link;
pub mod listen;
pub mod notify;
pub mod own;
pub mod pushed;
pub mod status;
pub mod store;
pub mod sys;
pub mod uplink;
