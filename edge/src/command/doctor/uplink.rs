//! The way to the cloud, step by step: name, TCP, CONNECT. Asks as a client of its own, so that a running edge keeps its place.

use std::time::{Duration, Instant};

use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::Finding;
use crate::{
    command::client::{Client, Protocol, Server},
    config::Config,
    link::Address,
};

/// For a name, and for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    if config.uplink.cloud.is_empty() {
        return vec![Finding::ok("cloud: none is set; nothing waits to be sent")];
    }
    // A bad one was said with the settings.
    let Ok(cloud) = Address::parse(&config.uplink.cloud) else { return Vec::new() };
    let mut all = Vec::new();
    match steps(&cloud, &mut all).await {
        Ok(()) => {}
        Err(finding) => all.push(finding),
    }
    all
}

async fn steps(cloud: &Address, all: &mut Vec<Finding>) -> Result<(), Finding> {
    let Address { host, port } = cloud;
    let began = Instant::now();
    let name = host.trim_matches(['[', ']']);
    let found = timeout(PATIENCE, lookup_host((name, *port))).await;
    let found: Vec<_> = match found {
        Ok(Ok(found)) => found.map(|address| address.ip().to_string()).collect(),
        Ok(Err(error)) => return Err(no_name(host, &error)),
        Err(_) => return Err(no_name(host, &"no answer")),
    };
    all.push(Finding::ok(format_args!(
        "cloud: {host} is {}, in {}",
        found.join(", "),
        took(began)
    )));
    let began = Instant::now();
    match timeout(PATIENCE, TcpStream::connect((name, *port))).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(no_way(host, *port, &error)),
        Err(_) => return Err(no_way(host, *port, &"no answer")),
    }
    all.push(Finding::ok(format_args!("cloud: port {port} answers in {}", took(began))));
    let server = Server {
        host: name.to_owned(),
        port: Some(*port),
        unix: None,
        id: format!("doctor-{}", std::process::id()),
        username: None,
        password: None,
        version: Protocol::V5,
        keepalive: 60,
        cafile: None,
        cert: None,
        key: None,
    };
    let began = Instant::now();
    match Client::connect(&server, true).await {
        Ok(client) => {
            all.push(Finding::ok(format_args!("cloud: takes CONNECT in {}", took(began))));
            // It was there; how it parts is no finding.
            let _ = client.leave().await;
            Ok(())
        }
        Err(error) => Err(Finding::fail(
            format_args!("cloud: {error}"),
            "is it tributary-cloud's MQTT port, and is that ready (/health/ready there)?",
        )),
    }
}

fn no_name(host: &str, error: &dyn std::fmt::Display) -> Finding {
    Finding::fail(
        format_args!("cloud: no address for {host}: {error}"),
        "see /etc/resolv.conf, or use an address",
    )
}

fn no_way(host: &str, port: u16, error: &dyn std::fmt::Display) -> Finding {
    Finding::fail(
        format_args!("cloud: no connection to {host}:{port}: {error}"),
        "is the cloud up, and does a firewall let this machine through? Messages wait on disk meanwhile",
    )
}

fn took(began: Instant) -> String {
    format!("{:.1} ms", began.elapsed().as_secs_f64() * 1e3)
}
