//! What a listener can be told, and what of it makes no sense.
//!
//! Change here: a setting of listeners. Not here: reading files, opening (`listener`).

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::auth::{Identities, Method};

crate::settings! {
    /// One more MQTT listener.
    pub struct Settings {
        /// host:port (an IPv6 address in brackets), or unix:/path/of/socket. Port 0 picks a free one.
        pub address: String = String::new(),
        /// tcp; tls = TCP with TLS; ws, wss = WebSocket without and with TLS.
        pub transport: Transport = Transport::Tcp,
        /// PEM file: certificate of this listener and those between it and its authority.
        pub certificate: String = String::new(),
        /// PEM file: its private key.
        pub key: String = String::new(),
        /// PEM file: authorities that sign the certificates of clients.
        pub client_ca: String = String::new(),
        /// PEM file: certificate revocation lists of those authorities. Each needs one then.
        pub client_crl: String = String::new(),
        /// TLS 1.2 besides 1.3.
        pub tls12: bool = false,
        /// How clients prove who they are: certificate, token, password, scram (SCRAM-SHA-256 by enhanced authentication of
        /// MQTT 5), anonymous. Empty: all that is configured, anonymous if nothing is.
        pub methods: Vec<Method> = Vec::new(),
        /// WebSocket: pages that may connect beside those of the same host, as https://host:port; * = all.
        pub origins: Vec<String> = Vec::new(),
        /// Connections at once on this listener. 0: only the common limit counts.
        pub connections: usize = 0,
        /// Who may connect to a unix socket, as file mode.
        pub mode: String = "660".to_owned(),
    }
}

/// What carries MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// TLS.
    Tls,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Transport {
    pub(super) fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }

    pub(super) fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// On a port.
    Tcp(SocketAddr),
    /// In the file system.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(out),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// Reads an address; a name is looked up.
pub(super) async fn address(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        let legal = path.is_absolute();
        return if legal { Ok(Address::Unix(path)) } else { Err("expected unix:/path".to_owned()) };
    }
    let form = || format!("`{text}` is no address: expected host:port, [IPv6]:port or unix:/path");
    let mut found = tokio::net::lookup_host(text).await.map_err(|_| form())?;
    found.next().map(Address::Tcp).ok_or_else(form)
}

/// Settings that would have no effect, or that are missing.
pub(super) fn check_files(
    settings: &Settings,
    address: &Address,
) -> Result<(), (&'static str, &'static str)> {
    let (tls, unix) = (settings.transport.is_tls(), matches!(address, Address::Unix(_)));
    if tls && unix {
        return Err(("transport", "a unix socket is tcp or ws"));
    }
    if tls && settings.certificate.is_empty() {
        return Err(("certificate", "TLS needs one"));
    }
    if tls && settings.key.is_empty() {
        return Err(("key", "TLS needs one"));
    }
    for (key, value) in [
        ("certificate", &settings.certificate),
        ("key", &settings.key),
        ("client_ca", &settings.client_ca),
        ("client_crl", &settings.client_crl),
    ] {
        if !tls && !value.is_empty() {
            return Err((key, "has no effect without transport tls or wss"));
        }
    }
    if settings.client_ca.is_empty() && !settings.client_crl.is_empty() {
        return Err(("client_crl", "has no effect without `client_ca`"));
    }
    if !settings.transport.is_websocket() && !settings.origins.is_empty() {
        return Err(("origins", "has no effect without transport ws or wss"));
    }
    Ok(())
}

/// What clients may show: as the setting says, or all that is configured.
pub(super) fn methods(settings: &Settings, identities: &Identities) -> Result<Vec<Method>, String> {
    let certificate = !settings.client_ca.is_empty();
    let possible = |method: Method| match method {
        Method::Certificate => certificate,
        Method::Anonymous => true,
        Method::Token | Method::Password | Method::Scram => identities.offers(method),
    };
    if settings.methods.is_empty() {
        let proofs = [Method::Certificate, Method::Token, Method::Password, Method::Scram];
        let proofs: Vec<Method> = proofs.into_iter().filter(|method| possible(*method)).collect();
        return Ok(if proofs.is_empty() { vec![Method::Anonymous] } else { proofs });
    }
    for method in &settings.methods {
        let missing = match method {
            Method::Certificate => "`client_ca` of this listener",
            Method::Token => "`auth.token_key_files` or `auth.token_secret_files`",
            Method::Password | Method::Scram => "`auth.password_file`",
            Method::Anonymous => "",
        };
        if !possible(*method) {
            return Err(format!("{method:?} needs {missing}").to_lowercase());
        }
    }
    if certificate && !settings.methods.contains(&Method::Certificate) {
        return Err("`client_ca` has no effect without certificate here".to_owned());
    }
    Ok(settings.methods.clone())
}
