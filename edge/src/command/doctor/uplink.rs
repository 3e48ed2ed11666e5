//! The way to the cloud, step by step: name, TCP, then TLS or CONNECT. Asks as a client of its own, so that a running edge
//! keeps its place; over TLS the cloud serves only edges, so there the handshake is all.

use std::{
    io,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::ServerName;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tributary_shared::auth::certificate::Facts;

use super::Finding;
use crate::{
    command::client::{Client, Protocol, Server},
    config::Config,
    enrol::Identity,
    link::{Address, tls},
};

/// For a name, and for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// For the cloud to say that it does not take our certificate: in TLS 1.3 it says so after the handshake.
const SECOND_THOUGHTS: Duration = Duration::from_secs(1);

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    if config.uplink.cloud.is_empty() {
        return vec![Finding::ok("cloud: none is set; nothing waits to be sent")];
    }
    // A bad one was said with the settings.
    let Ok(cloud) = Address::parse(&config.uplink.cloud) else { return Vec::new() };
    let mut all = Vec::new();
    match steps(config, &cloud, &mut all).await {
        Ok(()) => {}
        Err(finding) => all.push(finding),
    }
    all
}

async fn steps(config: &Config, cloud: &Address, all: &mut Vec<Finding>) -> Result<(), Finding> {
    let Address { host, port, tls } = cloud;
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
    let stream = match timeout(PATIENCE, TcpStream::connect((name, *port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(no_way(host, *port, &error)),
        Err(_) => return Err(no_way(host, *port, &"no answer")),
    };
    all.push(Finding::ok(format_args!("cloud: port {port} answers in {}", took(began))));
    if *tls {
        let identity = Identity::new(config);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        all.extend(identity.own_facts().map(|own| days_left(&own, now.as_secs())));
        return handshake(&identity, host, stream, all).await;
    }
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

/// Of the certificate that this edge shows.
fn days_left(own: &Facts, now_s: u64) -> Finding {
    let enrol = "enrol again: docs/operating/enrolment.md";
    let third = own.until_s.saturating_sub(own.from_s) / 3;
    let Some(left) = own.until_s.checked_sub(now_s) else {
        return Finding::fail("cloud: this edge's certificate has expired", enrol);
    };
    let days = left / 86_400;
    if left < third * 3 / 4 {
        let todo = "it should have been renewed: see the log of the running edge";
        return Finding::warn(
            format_args!("cloud: this edge's certificate ends in {days} days"),
            todo,
        );
    }
    Finding::ok(format_args!("cloud: this edge's certificate is good for {days} days"))
}

async fn handshake(
    identity: &Identity,
    host: &str,
    stream: TcpStream,
    all: &mut Vec<Finding>,
) -> Result<(), Finding> {
    let bad = |why: String| Finding::fail(format_args!("cloud: {why}"), TLS_DOC);
    let of_io = |error: io::Error| {
        bad(tls::in_io(&error)
            .map_or_else(|| format!("TLS: {error}"), |error| tls::words(error, host)))
    };
    let config = identity.client().map_err(|error| bad(error.to_string()))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| bad(format!("{host} cannot stand in a certificate")))?;
    let began = Instant::now();
    let connecting = timeout(PATIENCE, TlsConnector::from(config).connect(name, stream));
    let mut stream = match connecting.await {
        Ok(outcome) => outcome.map_err(of_io)?,
        Err(_) => return Err(bad("no TLS in time".to_owned())),
    };
    if let Ok(Err(error)) = timeout(SECOND_THOUGHTS, stream.read(&mut [0; 1])).await {
        return Err(of_io(error));
    }
    all.push(Finding::ok(format_args!("cloud: both sides trust each other, in {}", took(began))));
    Ok(())
}

const TLS_DOC: &str = "docs/operating/enrolment.md says how an edge gets its certificate";

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Level;

    #[test]
    fn a_certificate_that_was_not_renewed_in_time_is_warned_of_and_an_expired_one_fails() {
        let own = Facts { serial: String::new(), from_s: 0, until_s: 90 * 86_400 };
        for (day, level) in [(10, Level::Ok), (65, Level::Ok), (70, Level::Warn), (91, Level::Fail)]
        {
            assert_eq!(days_left(&own, day * 86_400).level, level, "day {day}");
        }
    }
}
