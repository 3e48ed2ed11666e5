//! A client's certificate while its connection is open: looked at again when the files that say whom to trust change, and
//! over when it ends.
//!
//! Change here: when a connected client's certificate counts no more. Not here: telling the client (`connection`).

use std::sync::Arc;

use rustls::{
    pki_types::{CertificateDer, UnixTime},
    time_provider::TimeProvider as _,
};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::{Since, Tls, expiry};
use crate::clock;

/// A chain that a connected client proved to have.
#[derive(Debug)]
pub struct Held {
    tls: Arc<Tls>,
    chain: Vec<CertificateDer<'static>>,
    changed: watch::Receiver<()>,
}

impl Tls {
    /// Changes of trust from now on. To be had before the handshake, so that none is missed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.trust.subscribe()
    }
}

impl Held {
    /// Of a client that showed one. `changed`: since before its handshake.
    pub fn of<S>(
        tls: &Arc<Tls>,
        stream: &TlsStream<S>,
        changed: watch::Receiver<()>,
    ) -> Option<Self> {
        let chain = stream.get_ref().1.peer_certificates()?.to_vec();
        Some(Self { tls: Arc::clone(tls), chain, changed })
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        self.chain.first().map_or(&[], AsRef::as_ref)
    }

    /// Waits until a new connection with this certificate would be refused.
    pub async fn ended(mut self) {
        let ends = expiry(&self.chain).map_or(0, |ends| ends.as_millis());
        let ends = i64::try_from(ends).unwrap_or(i64::MAX);
        let refused = async { while self.changed.changed().await.is_ok() && self.is_trusted() {} };
        tokio::select! {
            () = refused => {}
            () = clock::reach(ends) => {}
        }
    }

    fn is_trusted(&self) -> bool {
        let Some((own, between)) = self.chain.split_first() else { return false };
        let now = Since.current_time().unwrap_or_else(UnixTime::now);
        self.tls.current().verifier.verify_client_cert(own, between, now).is_ok()
    }
}
