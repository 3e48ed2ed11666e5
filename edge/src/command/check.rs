//! Says in plain words what settings would do: what listens where, who gets in, who may do what. Opens nothing.
//!
//! Change here: what is said. Not here: what is legal (`config`, `access`).

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tributary_shared::{
    auth::Method,
    net::{Listener, Transport, listener::Address},
};

use crate::{
    access::Access,
    app::{self, AppError},
    config::Config,
    enrol::Identity,
};

/// A certificate that ends sooner is worth a word.
const SOON: Duration = Duration::from_hours(30 * 24);

/// The report, or the first thing that would keep the edge from starting.
pub async fn report(config: &Config) -> Result<String, AppError> {
    config.check().map_err(AppError::Config)?;
    app::address(config, "listen.admin", &config.listen.admin).await?;
    let access = Access::prepare(config).await?;
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "Edge {}, data in {}.", config.id, config.data);
    uplink(&mut out, config);
    for listener in &access.listeners {
        describe(&mut out, listener);
    }
    let _ = writeln!(out, "HTTP (health, metrics, status) on {}, plain.", config.listen.admin);
    names(&mut out, config, &access);
    rules(&mut out, config, &access);
    Ok(out)
}

fn uplink(out: &mut String, config: &Config) {
    if config.uplink.cloud.is_empty() {
        let _ = writeln!(out, "No cloud: nothing is kept to be sent.");
        return;
    }
    let lanes = config.active_lanes();
    let lanes: Vec<&str> = lanes.iter().map(|lane| lane.name.as_str()).collect();
    let _ = writeln!(out, "Cloud {}, lanes: {}.", config.uplink.cloud, lanes.join(", "));
    let identity = Identity::new(config);
    if !config.uplink.cloud.starts_with("mqtts://") {
        let _ = writeln!(out, "  Without TLS: everybody on the way can read and change all of it.");
    } else if let Err(error) = identity.client() {
        let _ = writeln!(out, "  WARNING: no connection is possible: {error}.");
    } else if let Some(own) = identity.own_facts() {
        certificate(out, Duration::from_secs(own.until_s));
    } else {
        let _ = writeln!(out, "  With TLS; this edge shows no certificate.");
    }
}

fn describe(out: &mut String, listener: &Listener) {
    let transport = match (listener.transport, &listener.address) {
        (Transport::Tcp, Address::Tcp(_)) => "plain TCP",
        (Transport::Tcp, Address::Unix(_)) => "a unix socket",
        (Transport::Tls, _) => "TLS",
        (Transport::Ws, Address::Tcp(_)) => "plain WebSocket",
        (Transport::Ws, Address::Unix(_)) => "WebSocket over a unix socket",
        (Transport::Wss, _) => "WebSocket over TLS",
    };
    let reach = match &listener.address {
        Address::Unix(_) => "programs on this machine that may open it",
        Address::Tcp(_) if listener.is_exposed() => "other machines",
        Address::Tcp(_) => "this machine only",
    };
    let methods: Vec<&str> = listener.methods.iter().map(|method| words(*method)).collect();
    let (setting, address) = (&listener.setting, &listener.address);
    let _ = writeln!(out, "MQTT on {address} ({setting}): {transport}, for {reach}.");
    let _ = writeln!(out, "  Clients show {}.", methods.join(", or "));
    if listener.is_exposed() && listener.tls.is_none() {
        let _ = writeln!(
            out,
            "  WARNING: without TLS everybody on the way can read and change all of it."
        );
    }
    if listener.is_exposed() && listener.methods.contains(&Method::Anonymous) {
        let _ = writeln!(out, "  WARNING: everybody who can reach it gets in.");
    }
    if let Some(ends) = listener.tls.as_ref().and_then(|tls| tls.expires()) {
        certificate(out, ends);
    }
}

fn words(method: Method) -> &'static str {
    match method {
        Method::Certificate => "a client certificate",
        Method::Token => "a token as password",
        Method::Password => "a name and password",
        Method::Scram => "a name and proof of a password (SCRAM-SHA-256)",
        Method::Anonymous => "nothing",
    }
}

fn certificate(out: &mut String, ends: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let _ = match ends.checked_sub(now) {
        None => writeln!(out, "  WARNING: its certificate has expired."),
        Some(left) if left < SOON => {
            writeln!(out, "  WARNING: its certificate ends in {} days.", left.as_secs() / 86_400)
        }
        Some(left) => writeln!(out, "  Its certificate ends in {} days.", left.as_secs() / 86_400),
    };
}

fn names(out: &mut String, config: &Config, access: &Access) {
    let (users, keys) = access.identities.sizes();
    if !config.auth.password_file.is_empty() {
        let _ = writeln!(out, "{users} names with passwords in {}.", config.auth.password_file);
    }
    if keys > 0 {
        let _ = writeln!(
            out,
            "{keys} keys for tokens; the claim `{}` is the name.",
            config.auth.token_claim
        );
    }
}

fn rules(out: &mut String, config: &Config, access: &Access) {
    if config.rules.is_empty() {
        let exposed = access.listeners.iter().any(Listener::is_exposed);
        let warning = if exposed { "WARNING: no" } else { "No" };
        let _ = writeln!(out, "{warning} access rules: every client may do everything.");
        return;
    }
    let _ = writeln!(out, "Who may do what, the first rule that fits decides:");
    for (at, rule) in config.rules.iter().enumerate() {
        let _ = writeln!(out, "  {}. {rule}.", at + 1);
    }
    let _ = writeln!(out, "  Nobody may do anything else.");
}

#[cfg(test)]
mod tests {
    use tributary_shared::{auth::Rule, net::listener::Settings};

    use super::*;

    fn config() -> Config {
        Config { id: "gw1".to_owned(), ..Config::default() }
    }

    #[tokio::test]
    async fn the_defaults_are_for_this_machine_only_and_the_report_says_so() {
        let text = report(&config()).await.unwrap();
        for line in [
            "Edge gw1, data in /var/lib/tributary-edge.",
            "No cloud: nothing is kept to be sent.",
            "MQTT on 127.0.0.1:1883 (listen.mqtt): plain TCP, for this machine only.",
            "  Clients show nothing.",
            "No access rules: every client may do everything.",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("WARNING"), "{text}");
    }

    #[tokio::test]
    async fn what_is_open_is_warned_of_and_rules_are_spelled_out() {
        let mut config = config();
        config.net.allow_insecure = true;
        config.listeners = vec![
            Settings {
                address: "0.0.0.0:1884".to_owned(),
                transport: Transport::Ws,
                ..Settings::default()
            },
            Settings { address: "unix:/run/mqtt".to_owned(), ..Settings::default() },
        ];
        let text = report(&config).await.unwrap();
        assert!(text.contains("0.0.0.0:1884 (listeners[0]): plain WebSocket, for other machines."));
        assert!(text.contains("unix:/run/mqtt (listeners[1]): a unix socket, for programs"));
        assert_eq!(text.matches("WARNING").count(), 3, "{text}");
        config.rules = vec![Rule {
            who: vec!["gw-*".to_owned()],
            topics: vec!["up/%u/#".to_owned()],
            ..Rule::default()
        }];
        let text = report(&config).await.unwrap();
        assert!(text.contains("  1. gw-* may publish and subscribe to up/%u/#.\n  Nobody may do"));
    }

    #[tokio::test]
    async fn what_would_not_start_is_an_error() {
        let mut config = config();
        config.listen.mqtt = "0.0.0.0:1883".to_owned();
        let error = report(&config).await.unwrap_err().to_string();
        assert!(
            error.contains("listen.mqtt") && error.contains("TLS and authentication"),
            "{error}"
        );
        config.listen.mqtt.clear();
        let error = report(&config).await.unwrap_err().to_string();
        assert!(error.contains("nobody could connect"), "{error}");
    }
}
