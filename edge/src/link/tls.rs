//! TLS below MQTT, and what goes wrong there in words that say what to do.
//!
//! In: the edge's [`Identity`]. Out: rumqttc's transport, one sentence an error. TLS 1.3, our certificate shown if there is one.
//! Change here: what a person is told when the cloud and the edge do not trust each other. Not here: what is trusted (`enrol`).

use std::io;

use rumqttc::{
    TlsConfiguration, Transport,
    v5::{
        ConnectionError, StateError,
        mqttbytes::{self, v5::ConnectReturnCode},
    },
};
use rustls::{AlertDescription, CertificateError, Error};

use super::Address;
use crate::enrol::Identity;

/// How to reach `address`; read again for each connection.
pub(super) fn transport(address: &Address, identity: &Identity) -> Result<Transport, String> {
    if !address.tls {
        return Ok(Transport::Tcp);
    }
    let config = identity.client().map_err(|error| error.to_string())?;
    Ok(Transport::Tls(TlsConfiguration::Rustls(config)))
}

/// Why a connection is not, or not any more.
pub(super) fn why(error: &ConnectionError, host: &str) -> String {
    let from_io = |error: &io::Error| in_io(error).map(|error| words(error, host));
    let said = match error {
        ConnectionError::Tls(rumqttc::TlsError::Io(error)) | ConnectionError::Io(error) => {
            from_io(error)
        }
        ConnectionError::Tls(rumqttc::TlsError::TLS(error)) => Some(words(error, host)),
        ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(mqttbytes::Error::Io(error)),
        ) => from_io(error),
        ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized) => {
            Some(NOT_AUTHORIZED.to_owned())
        }
        _ => None,
    };
    said.unwrap_or_else(|| super::reasons::in_words(error))
}

const NOT_AUTHORIZED: &str = "the cloud does not let this edge in (0x87): its certificate is for another id than `id`, or it is on the cloud's deny list; the cloud's log says which";

/// What TLS says inside an error of the socket.
pub(crate) fn in_io(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// An error of TLS, and what to do.
pub(crate) fn words(error: &Error, host: &str) -> String {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    match error {
        // A bad signature: another authority of the same name.
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => format!(
            "{host} shows a certificate of an authority that this edge does not trust: is it the right cloud? else set `uplink.ca`, or enrol again"
        ),
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            format!(
                "the certificate that is shown at {host} is for another name: correct the host in `uplink.cloud`, or give the cloud a certificate for {host}"
            )
        }
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => format!(
            "the certificate of {host} has expired: renew it at the cloud, or set this machine's clock if that is ahead"
        ),
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            format!("the certificate of {host} is not valid yet: is this machine's clock right?")
        }
        Error::AlertReceived(Alert::CertificateRequired) => format!(
            "{host} wants a certificate and this edge has none: run `tributary-edge enrol`, or set `uplink.certificate` and `uplink.key`"
        ),
        Error::AlertReceived(Alert::CertificateExpired) => format!(
            "{host} says that this edge's certificate has expired: enrol again with a new token"
        ),
        Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::DecryptError
            | Alert::CertificateUnknown
            | Alert::CertificateRevoked
            | Alert::AccessDenied,
        ) => format!(
            "{host} does not trust this edge's certificate ({error}): is it of another fleet? else enrol again with a new token"
        ),
        Error::InvalidMessage(_) => {
            format!("what answers at {host} does not speak TLS: is the port right?")
        }
        other => format!("TLS with {host}: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc, time::Duration};

    use rustls::{
        ServerConfig, crypto::ring, pki_types::PrivateKeyDer, server::WebPkiClientVerifier,
    };
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinHandle,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::{
        config::Config,
        enrol::testing::{Authority, DAY_S, Pair, Span, enrolled},
        link::{Batches, Caller, Dial as _},
    };

    /// A cloud that greets edges of `fleet`, on a port of its own.
    async fn cloud(fleet: &Authority, own: Pair) -> (u16, JoinHandle<()>) {
        let provider = Arc::new(ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(fleet.roots(), provider.clone());
        let key = PrivateKeyDer::clone_key(&own.key);
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(vec![own.certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                if stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {
                    stream.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap();
                    stream.flush().await.unwrap();
                    let _ = stream.read(&mut [0; 1]).await;
                }
            }
        });
        (port, task)
    }

    async fn dial(data: &Path, host: &str, port: u16) -> Result<(), String> {
        let data = data.to_str().unwrap().to_owned();
        let caller = Caller {
            address: Address::parse(&format!("mqtts://{host}:{port}")).unwrap(),
            edge_id: "gw1".to_owned(),
            lane: "normal".to_owned(),
            status: Arc::default(),
            connect_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(30),
            login: None,
            identity: Identity::new(&Config { data, ..Config::default() }),
        };
        Batches(caller).dial().await.map(|_| ())
    }

    #[tokio::test]
    async fn both_sides_prove_who_they_are_or_the_edge_says_what_to_do() {
        let (fleet, other) = (Authority::new(), Authority::new());
        let edge = |of: &Authority, span| of.edge("gw1", span);
        let year = Span::days(365);
        let now = Span::days(0).until;
        let ended = Span { from: now - 900 * DAY_S, until: now - DAY_S };
        let (good, task) = cloud(&fleet, fleet.server("localhost", year)).await;
        let (late, late_task) = cloud(&fleet, fleet.server("localhost", ended)).await;
        let folder = || TempDir::new().unwrap();
        let case = |trusts: &Authority, shows: Option<&Pair>| {
            let folder = folder();
            if let Some(pair) = shows {
                enrolled(folder.path(), trusts, pair);
            } else {
                std::fs::create_dir(folder.path().join("identity")).unwrap();
                std::fs::write(folder.path().join("identity/ca.pem"), &trusts.pem).unwrap();
            }
            folder
        };
        let right = case(&fleet, Some(&edge(&fleet, year)));
        dial(right.path(), "localhost", good).await.unwrap();
        for (case, host, port, words) in [
            (case(&other, Some(&edge(&fleet, year))), "localhost", good, "does not trust"),
            (case(&fleet, Some(&edge(&fleet, year))), "127.0.0.1", good, "for another name"),
            (case(&fleet, Some(&edge(&fleet, year))), "localhost", late, "has expired: renew it"),
            (case(&fleet, None), "localhost", good, "run `tributary-edge enrol`"),
            (case(&fleet, Some(&edge(&other, year))), "localhost", good, "of another fleet"),
            (case(&fleet, Some(&edge(&fleet, ended))), "localhost", good, "enrol again"),
            (folder(), "localhost", good, "trusts no authority yet"),
        ] {
            let error = dial(case.path(), host, port).await.unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        task.abort();
        late_task.abort();
    }

    #[tokio::test]
    async fn a_port_that_does_not_speak_tls_is_said_to_be_wrong() {
        let fleet = Authority::new();
        let folder = TempDir::new().unwrap();
        enrolled(folder.path(), &fleet, &fleet.edge("gw1", Span::days(1)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let plain = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        });
        let error = dial(folder.path(), "localhost", port).await.unwrap_err();
        assert!(error.contains("is the port right"), "{error}");
        plain.await.unwrap();
    }
}
