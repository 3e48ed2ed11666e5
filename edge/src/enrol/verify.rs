//! The cloud's certificate, looked at by a gateway whose clock may be wrong by decades in either direction.
//!
//! Chain, name and signatures are always checked. Of the time only this is certain: it is not earlier than the newest date
//! that an authority has signed ([`Evidence`]: the start of our own certificate, and of every certificate the cloud has
//! shown). The clock counts while it does not contradict that, and lies before the end of our own certificate, which is
//! renewed long before. Else ([`Time::Unsure`]) a certificate is refused only if it had ended before that date. What the
//! clock says is never kept: a clock ten years ahead does no harm once it is right again.
//!
//! Change here: what counts as the time. Not here: which authorities are trusted (`identity`).

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use tributary_shared::auth::certificate::{Facts, facts};

use super::files;

/// 2026-01-01: this was not written earlier.
const WRITTEN_S: u64 = 1_767_225_600;

/// The newest date that is certain, and the file that keeps it.
#[derive(Debug)]
pub(super) struct Evidence {
    newest_s: AtomicU64,
    file: PathBuf,
    warned: AtomicBool,
}

impl Evidence {
    /// As the file says; without one, when this was written.
    pub(super) fn open(file: PathBuf) -> Self {
        let kept = files::read(&file).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let kept = kept.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let newest_s = AtomicU64::new(WRITTEN_S.max(kept));
        Self { newest_s, file, warned: AtomicBool::new(false) }
    }

    /// A date that an authority has signed.
    fn learn(&self, at_s: u64) {
        if self.newest_s.fetch_max(at_s, Relaxed) < at_s
            && let Err(error) = files::write(&self.file, format!("{at_s}\n").as_bytes())
        {
            tracing::debug!(file = %self.file.display(), %error, "not kept: it is learnt again");
        }
    }
}

/// What is known of the time, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    /// The clock seems right.
    Clock(u64),
    /// The clock is wrong, or we were off for long. Not earlier than this.
    Unsure(u64),
}

impl Time {
    /// PURE. `own`: from when to when our own certificate is good.
    fn judge(clock_s: u64, newest_s: u64, own: Option<(u64, u64)>) -> Self {
        let newest_s = own.map_or(newest_s, |(from, _)| newest_s.max(from));
        let late = own.is_some_and(|(_, until)| clock_s > until);
        if clock_s < newest_s || late { Self::Unsure(newest_s) } else { Self::Clock(clock_s) }
    }

    /// PURE. The time at which a chain is looked at. `begins_s`: when all of it has begun.
    fn look_at(self, begins_s: u64) -> u64 {
        match self {
            Self::Clock(now) => now,
            Self::Unsure(newest) => newest.max(begins_s),
        }
    }
}

/// Checks the cloud's certificate.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) inner: Arc<WebPkiServerVerifier>,
    pub(super) evidence: Arc<Evidence>,
    /// From when to when our own certificate is good.
    pub(super) own: Option<(u64, u64)>,
    /// First contact: the authority is pinned and the token is fresh, so a clock that says otherwise is wrong.
    pub(super) first_contact: bool,
}

impl Verifier {
    fn verify(
        &self,
        chain: (&CertificateDer<'_>, &[CertificateDer<'_>]),
        name: &ServerName<'_>,
        ocsp: &[u8],
        time: Time,
    ) -> Result<ServerCertVerified, Error> {
        let (own, between) = chain;
        let all = std::iter::once(own).chain(between);
        let begins = all.filter_map(|one| facts(one)).map(|facts| facts.from_s).max();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(time.look_at(begins.unwrap_or(0))));
        self.inner.verify_server_cert(own, between, name, ocsp, at)
    }

    fn warn(&self, clock_s: u64, newest_s: u64) {
        if !self.evidence.warned.swap(true, Relaxed) {
            tracing::warn!(
                clock_s,
                newest_s,
                "this machine's clock cannot be right (seconds since 1970): the cloud's certificate is taken if it had not ended at the newest date known; set the clock"
            );
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let clock_s = now.as_secs();
        let newest_s = self.evidence.newest_s.load(Relaxed);
        let chain = (end_entity, intermediates);
        let time = Time::judge(clock_s, newest_s, self.own);
        if let Time::Unsure(newest_s) = time {
            self.warn(clock_s, newest_s);
        } else {
            self.evidence.warned.store(false, Relaxed);
        }
        let mut outcome = self.verify(chain, server_name, ocsp_response, time);
        if self.first_contact && outcome.as_ref().is_err_and(is_about_time) {
            self.warn(clock_s, newest_s);
            outcome = self.verify(chain, server_name, ocsp_response, Time::Unsure(newest_s));
        }
        if let (Ok(_), Some(Facts { from_s, .. })) = (&outcome, facts(end_entity)) {
            self.evidence.learn(from_s);
        }
        outcome
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// For the one question whose answer is checked against a pin: which authority is yours? Nothing else may be said on it.
pub(super) fn blind() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Blind(schemes)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Blind(Vec<SignatureScheme>);

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

fn is_about_time(error: &Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let Error::InvalidCertificate(why) = error else { return false };
    matches!(why, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrol::testing::{Authority, DAY_S, Span};

    /// 2026-07-01.
    const NOW: u64 = 1_782_864_000;
    const TEN_YEARS: u64 = 3_650 * DAY_S;

    #[test]
    fn the_clock_counts_unless_something_signed_contradicts_it() {
        let own = Some((NOW - 30 * DAY_S, NOW + 60 * DAY_S));
        for (clock, newest, own, time) in [
            (NOW, WRITTEN_S, own, Time::Clock(NOW)),
            (NOW, WRITTEN_S, None, Time::Clock(NOW)),
            (0, WRITTEN_S, None, Time::Unsure(WRITTEN_S)),
            (0, WRITTEN_S, own, Time::Unsure(NOW - 30 * DAY_S)),
            (0, NOW, own, Time::Unsure(NOW)),
            (NOW + TEN_YEARS, NOW, own, Time::Unsure(NOW)),
            (NOW + TEN_YEARS, NOW, None, Time::Clock(NOW + TEN_YEARS)),
        ] {
            assert_eq!(Time::judge(clock, newest, own), time, "{clock} {newest} {own:?}");
        }
    }

    struct Case {
        authority: Authority,
        folder: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            Self { authority: Authority::new(), folder: tempfile::tempdir().unwrap() }
        }

        fn verifier(&self, own: Option<(u64, u64)>, first_contact: bool) -> Verifier {
            let evidence = Arc::new(Evidence::open(self.folder.path().join("time")));
            Verifier { inner: self.authority.verifier(), evidence, own, first_contact }
        }

        /// What becomes of the cloud's certificate when the clock says `clock`.
        fn look(&self, verifier: &Verifier, span: Span, clock: u64) -> Result<(), Error> {
            let pair = self.authority.server("cloud.example", span);
            let name = ServerName::try_from("cloud.example").unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(clock));
            let outcome = verifier.verify_server_cert(&pair.certificate, &[], &name, &[], now);
            outcome.map(|_| ())
        }
    }

    #[test]
    fn a_clock_ten_years_wrong_in_either_direction_locks_no_edge_out() {
        let case = Case::new();
        let own = Some((NOW - 30 * DAY_S, NOW + 60 * DAY_S));
        let good = Span { from: NOW - DAY_S, until: NOW + 300 * DAY_S };
        for clock in [0, NOW - TEN_YEARS, NOW, NOW + TEN_YEARS] {
            case.look(&case.verifier(own, false), good, clock).unwrap();
        }
        // The clock is right again: nothing of what it said was kept.
        let after = case.verifier(own, false);
        case.look(&after, good, NOW).unwrap();
        assert_eq!(after.evidence.newest_s.load(Relaxed), good.from);
    }

    #[test]
    fn a_certificate_that_has_ended_is_refused_whatever_the_clock_says() {
        let case = Case::new();
        let own = Some((NOW - 30 * DAY_S, NOW + 60 * DAY_S));
        let old = Span { from: NOW - 400 * DAY_S, until: NOW - 31 * DAY_S };
        for clock in [0, NOW - TEN_YEARS, NOW, NOW + TEN_YEARS] {
            let error = case.look(&case.verifier(own, false), old, clock).unwrap_err();
            assert!(is_about_time(&error), "{error}");
        }
        // Once a newer one was seen, an older one that ended before it is refused without any certificate of our own.
        let good = Span { from: NOW - DAY_S, until: NOW + 300 * DAY_S };
        case.look(&case.verifier(None, false), good, 0).unwrap();
        assert!(case.look(&case.verifier(None, false), old, 0).is_err(), "kept over a restart");
    }

    #[test]
    fn only_the_first_contact_believes_the_certificate_more_than_the_clock() {
        let case = Case::new();
        let good = Span { from: NOW - DAY_S, until: NOW + 300 * DAY_S };
        let ahead = NOW + TEN_YEARS;
        assert!(case.look(&case.verifier(None, false), good, ahead).is_err());
        case.look(&case.verifier(None, true), good, ahead).unwrap();
        let stranger = Case::new();
        let verifier =
            Verifier { inner: stranger.authority.verifier(), ..case.verifier(None, true) };
        assert!(case.look(&verifier, good, NOW).is_err(), "of another authority");
    }
}
