//! Getting a certificate with a token, and a new one in time, each for a new key that never leaves this machine.
//!
//! ```text
//! enrol   cacerts (pinned by the token) -> key on disk -> simpleenroll -> edge.pem, ca.pem, est
//! renew   at two thirds: new key -> simplereenroll -> tried on the cloud -> takes the place of edge.pem
//! ```
//! The key is on disk before it is asked for a certificate, so an answer that is lost is asked for again. The old pair stays
//! until the new one has worked. While the clock cannot be right nobody knows what two thirds are: then it is renewed once a
//! day, which also brings a newer date. Change here: when and what. Not here: HTTP (`est`), checks (`verify`).

use std::{fs, path::Path, sync::Arc, time::Duration};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    auth::certificate::{EDGE, Facts, principal},
    backoff::Backoff,
    clock::wall_ms,
    enrol::{Token, pin},
};

use super::{Identity, est, files};
use crate::status::Status;

const DAY: Duration = Duration::from_hours(24);
/// How often the certificate is looked at, at the most.
const LOOK: Duration = Duration::from_hours(1);
/// Common names are at most this long (RFC 5280).
const COMMON_NAME_MAX: usize = 64;

/// Enrols the edge whose data is in `data`; says what was done.
pub async fn enrol(token: &Token, data: &Path) -> Result<String, String> {
    let folder = data.join("identity");
    let wrong = |error: std::io::Error| format!("{}: {error}", folder.display());
    make(&folder).map_err(wrong)?;
    let all = est::cacerts(&token.at, super::verify::blind()?).await?;
    let authority = all.into_iter().find(|der| pin(der) == token.pin).ok_or_else(|| {
        format!("{} is not the cloud that made this token: its authority is another", token.at)
    })?;
    let ca = files::certificate_pem(&authority);
    let config = super::identity::first_contact(&folder, &ca).map_err(|error| error.to_string())?;
    let key = pending(&folder.join("pending.key"))?;
    let request = request(&key, &token.id)?;
    let answer = est::enroll(&token.at, config, (&token.id, &token.secret), &request).await?;
    let pem = pair(&key, &answer, &token.id)?;
    files::write(&folder.join("ca.pem"), ca.as_bytes()).map_err(wrong)?;
    files::write(&folder.join("est"), token.at.as_bytes()).map_err(wrong)?;
    files::write(&folder.join("edge.pem"), pem.as_bytes()).map_err(wrong)?;
    fs::remove_file(folder.join("pending.key")).map_err(wrong)?;
    Ok(format!("{} is enrolled; its key and certificate are in {}", token.id, folder.display()))
}

/// For us alone.
fn make(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// A key that waits for its certificate: the one an earlier attempt left, or a new one.
fn pending(file: &Path) -> Result<KeyPair, String> {
    let kept = files::read(file).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some(key) = kept.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    files::write(file, key.serialize_pem().as_bytes())
        .map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(key)
}

fn request(key: &KeyPair, id: &str) -> Result<Vec<u8>, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if id.len() <= COMMON_NAME_MAX {
        params.distinguished_name.push(DnType::CommonName, id);
    }
    let uri = format!("{EDGE}{id}").try_into().map_err(|error: rcgen::Error| error.to_string())?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    let request = params.serialize_request(key).map_err(|error| error.to_string())?;
    Ok(request.der().to_vec())
}

/// Key and certificate as one file; the certificate is ours.
fn pair(key: &KeyPair, answer: &[Vec<u8>], id: &str) -> Result<String, String> {
    let own = answer.first().and_then(|der| principal(der));
    if own.as_deref() != Some(id) {
        return Err("the cloud answered with the certificate of somebody else".to_owned());
    }
    let chain: String = answer.iter().map(|der| files::certificate_pem(der)).collect();
    Ok(format!("{}{chain}", key.serialize_pem()))
}

/// What is to be done about a certificate.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Now,
    In(Duration),
}

/// PURE. `part`: of the time after two thirds, for edges that began together, 0 to 1.
fn due(own: &Facts, clock_s: u64, renewed: Option<Duration>, part: f64) -> Due {
    let life = own.until_s.saturating_sub(own.from_s);
    let at = own.from_s + life * 2 / 3 + ((life / 15) as f64 * part) as u64;
    if (own.from_s..=own.until_s).contains(&clock_s) {
        return match at.saturating_sub(clock_s) {
            0 => Due::Now,
            left => Due::In(Duration::from_secs(left)),
        };
    }
    // The clock cannot be right.
    let every = DAY.min(Duration::from_secs(life * 2 / 3));
    match renewed.and_then(|since| every.checked_sub(since)).filter(|left| !left.is_zero()) {
        Some(left) => Due::In(left),
        None => Due::Now,
    }
}

/// Renews until `stop`. Without an enrolment there is nothing to do.
pub async fn run(identity: Arc<Identity>, status: Arc<Status>, stop: CancellationToken) {
    let work = async {
        let part = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
        let mut renewed: Option<tokio::time::Instant> = None;
        let mut backoff: Option<Backoff> = None;
        loop {
            let own = identity.own_facts();
            status.certificate_until_s.set(own.as_ref().map_or(0, |own| own.until_s));
            let Some(own) = own.filter(|_| identity.is_enrolled()) else {
                sleep(LOOK).await;
                continue;
            };
            let clock_s = u64::try_from(wall_ms() / 1_000).unwrap_or_default();
            if let Due::In(left) = due(&own, clock_s, renewed.map(|at| at.elapsed()), part) {
                sleep(left.min(LOOK)).await;
                continue;
            }
            match renew(&identity).await {
                Ok(()) => {
                    tracing::info!("this edge's certificate is renewed");
                    status.certificate_renewals.add(1);
                    (renewed, backoff) = (Some(tokio::time::Instant::now()), None);
                }
                Err(why) => {
                    let life = Duration::from_secs(own.until_s.saturating_sub(own.from_s));
                    let waits = || Backoff::new(LOOK.min(life / 60), (LOOK * 4).min(life / 20));
                    let wait = backoff.get_or_insert_with(waits).next_wait();
                    status.certificate_failures.add(1);
                    tracing::warn!(why, ?wait, "this edge's certificate is not renewed yet");
                    sleep(wait).await;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Gets a new certificate for a new key, and puts both in the place of the old when they have worked.
pub(super) async fn renew(identity: &Identity) -> Result<(), String> {
    let folder = identity.folder();
    let file = |name: &str| folder.join(name);
    let wrong = |error: std::io::Error| format!("{}: {error}", folder.display());
    let at = files::read(&file("est")).map_err(wrong)?;
    let at = String::from_utf8(at).map_err(|_| "identity/est is no address".to_owned())?;
    let at = at.trim();
    let id = identity.own_name().ok_or("this edge's certificate cannot be read")?;
    let config = identity.client().map_err(|error| error.to_string())?;
    let key = pending(&file("pending.key"))?;
    let answer = est::reenroll(at, config, &request(&key, &id)?).await?;
    let pem = pair(&key, &answer, &id)?;
    let next = identity.with_pair(&pem).map_err(|error| error.to_string())?;
    let authorities = est::cacerts(at, next)
        .await
        .map_err(|why| format!("the new certificate does not work, the old one stays: {why}"))?;
    let ca: String = authorities.iter().map(|der| files::certificate_pem(der)).collect();
    files::write(&file("edge.pem"), pem.as_bytes()).map_err(wrong)?;
    fs::remove_file(file("pending.key")).map_err(wrong)?;
    if files::read(&file("ca.pem")).map_err(wrong)? != ca.as_bytes() {
        files::write(&file("ca.pem"), ca.as_bytes()).map_err(wrong)?;
        tracing::info!("the fleet's authorities have changed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: u64 = 86_400;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_and_once_a_day_while_the_clock_is_wrong() {
        let own = Facts { serial: String::new(), from_s: 1_000 * DAY_S, until_s: 1_090 * DAY_S };
        let days = |days: u64| Due::In(Duration::from_secs(days * DAY_S));
        let hours = Duration::from_hours;
        for (clock_day, renewed, part, outcome) in [
            (1_000, None, 0.0, days(60)),
            (1_059, None, 0.0, days(1)),
            (1_060, None, 0.0, Due::Now),
            (1_060, None, 1.0, days(6)),
            (1_089, None, 1.0, Due::Now),
            (0, None, 0.0, Due::Now),
            (0, Some(hours(1)), 0.0, Due::In(hours(23))),
            (0, Some(hours(24)), 0.0, Due::Now),
            (5_000, Some(hours(1)), 0.0, Due::In(hours(23))),
        ] {
            assert_eq!(due(&own, clock_day * DAY_S, renewed, part), outcome, "day {clock_day}");
        }
    }
}
