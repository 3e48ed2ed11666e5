//! Who gets in by which means, and what it costs to be wrong.

use std::{fs, time::Instant};

use super::*;

/// "password", cheaply hashed.
const CHEAP: &str =
    "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW: Now = Now { mono_ms: 5, wall_ms: 1_700_000_000_000, lasting_ms: 1_700_000_000_000 };
const ALL: [Method; 3] = [Method::Certificate, Method::Token, Method::Password];

struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("tributary-auth-{:016x}", getrandom::u64().unwrap());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// ann is a person, gw-1 a device; the device's secret.
fn two_users(folder: &Folder) -> (Settings, String) {
    let (secret, device) = Stored::for_new_device().unwrap();
    let password_file = folder.write("users", &format!("ann:{CHEAP}\ngw-1:{device}\n"));
    let token_secret_files = vec![folder.write("token", SECRET)];
    (Settings { password_file, token_secret_files, ..Settings::default() }, secret)
}

fn showing<'a>(user: &'a str, password: &'a str, client_id: &'a str) -> Shown<'a> {
    let (user, password) = (Some(user), Some(password.as_bytes()));
    let address = Some("198.51.100.7".parse().unwrap());
    Shown { certificate: &Certificate::None, user, password, client_id, address }
}

fn nothing() -> Shown<'static> {
    Shown {
        certificate: &Certificate::None,
        user: None,
        password: None,
        client_id: "c",
        address: None,
    }
}

fn token(name: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use ring::hmac;
    let claims = format!(r#"{{"sub":"{name}","exp":1700000100}}"#);
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let signed = format!("{}.{}", encode(br#"{"alg":"HS256"}"#), encode(claims.as_bytes()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{signed}.{}", encode(hmac::sign(&key, signed.as_bytes()).as_ref()))
}

async fn outcome(all: &Identities, shown: Shown<'_>, methods: &[Method]) -> Result<String, u8> {
    match all.identify(shown, methods, NOW).await {
        Ok(Identity { principal, .. }) => Ok(principal.map(String::from).unwrap_or_default()),
        Err(refusal) => Err(refusal.reason.0),
    }
}

#[tokio::test]
async fn the_first_means_that_a_client_uses_decides() {
    let folder = Folder::new();
    let (settings, secret) = two_users(&folder);
    let all = Identities::open(&settings).unwrap();
    assert!(all.offers(Method::Password) && all.offers(Method::Token));
    assert_eq!(all.sizes(), (2, 1));
    let name = Certificate::Named(ByteString::from_static("gw-1"));
    let (good, forged) = (token("gw-1"), token("gw-1").replace("ey", "eyx"));
    let anonymous = [Method::Password, Method::Anonymous];
    let only = [Method::Anonymous];
    let some = |name: &str| Ok(name.to_owned());
    for (shown, methods, expected) in [
        (showing("ann", "password", "any"), &ALL[..], some("ann")),
        (showing("gw-1", &secret, "gw-1"), &ALL, some("gw-1")),
        (showing("whoever", &good, "gw-1"), &ALL, some("gw-1")),
        (Shown { certificate: &name, ..showing("ann", "wrong", "gw-1") }, &ALL, some("gw-1")),
        (nothing(), &anonymous, some("")),
        (showing("ann", "password", "c"), &only, some("")),
        // A failure is never made up for.
        (showing("ann", "wrong", "c"), &anonymous, Err(0x86)),
        (showing("nobody", "password", "c"), &anonymous, Err(0x86)),
        (
            Shown { certificate: &Certificate::Nameless, ..showing("ann", "password", "c") },
            &ALL,
            Err(0x87),
        ),
        (showing("ann", &forged, "c"), &ALL, Err(0x86)),
        (showing("ann", "", "c"), &ALL, Err(0x86)),
        (nothing(), &ALL, Err(0x87)),
        (nothing(), &[], Err(0x87)),
        // Means that the listener does not take.
        (Shown { certificate: &name, ..nothing() }, &[Method::Password], Err(0x87)),
        (showing("gw-1", &good, "gw-1"), &[Method::Password], Err(0x86)),
        (showing("ann", "password", "c"), &[Method::Token], Err(0x87)),
        // A device's client id is its name; a person's is its own affair.
        (showing("gw-1", &secret, "gw-2"), &ALL, Err(0x85)),
        (showing("gw-1", &secret, ""), &ALL, Err(0x85)),
        (showing("x", &good, "gw-10"), &ALL, Err(0x85)),
        (Shown { certificate: &name, ..nothing() }, &ALL, Err(0x85)),
    ] {
        assert_eq!(outcome(&all, shown, methods).await, expected, "{shown:?} {methods:?}");
    }
    let holds = all.identify(showing("", &good, "gw-1"), &ALL, NOW).await.unwrap().holds;
    assert!(matches!(holds, Holds::Token(1_700_000_160_000, _)));
}

#[test]
fn a_client_id_belongs_to_the_name_it_begins_with_and_to_no_other() {
    for (client_id, equal, prefix) in [
        ("gw-1", true, true),
        ("gw-1-a", false, true),
        ("gw-1.a", false, true),
        ("gw-10", false, false),
        ("gw-1/a", false, false),
        ("gw", false, false),
        ("xgw-1", false, false),
        ("", false, false),
    ] {
        assert_eq!(Binding::MustEqual.allows("gw-1", client_id), equal, "{client_id}");
        assert_eq!(Binding::Prefix.allows("gw-1", client_id), prefix, "{client_id}");
        assert!(Binding::Any.allows("gw-1", client_id));
    }
}

#[tokio::test]
async fn every_wrong_answer_takes_as_long_as_a_persons() {
    let folder = Folder::new();
    let (settings, _) = two_users(&folder);
    let all = Identities::open(&settings).unwrap();
    let hash = || {
        let started = Instant::now();
        assert!(!Stored::nobody().verify(b"x"));
        started.elapsed()
    };
    // The fastest of several, before and after: a busy machine makes both slow, never fast.
    let mut floor = (0..3).map(|_| hash()).min().unwrap();
    let mut answers = Vec::new();
    for user in ["nobody", "gw-1"] {
        let started = Instant::now();
        assert!(outcome(&all, showing(user, "wrong", "c"), &ALL).await.is_err());
        answers.push(started.elapsed());
    }
    floor = (0..3).map(|_| hash()).min().unwrap().min(floor);
    assert!(answers.iter().all(|took| *took > floor / 2), "{answers:?} {floor:?}");
    assert_eq!(all.counters.slow_checks.load(Ordering::Relaxed), 2, "one each");
}

#[tokio::test]
async fn guessing_is_slowed_and_then_blocked_even_if_right() {
    let folder = Folder::new();
    let password_file =
        folder.write("users", &format!("gw:{}\n", Stored::for_new_device().unwrap().1));
    let settings = Settings { password_file, ..Settings::default() };
    let all = Identities::open(&settings).unwrap();
    let (mut delays, shown) = (Vec::new(), showing("gw", "wrong", "gw"));
    for _ in 0..11 {
        delays.push(all.identify(shown, &ALL, NOW).await.unwrap_err());
    }
    assert!(delays.windows(2).take(9).all(|pair| pair[0].delay <= pair[1].delay));
    assert_eq!(delays[9].delay, Duration::from_secs(5));
    assert_eq!(delays[10].reason, Reason::CONNECTION_RATE_EXCEEDED);
    assert_eq!(all.counters.wrong.load(Ordering::Relaxed), 10);
    assert_eq!(all.counters.blocked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_verified_password_is_remembered_until_the_file_changes() {
    let folder = Folder::new();
    let (settings, _) = two_users(&folder);
    let all = Identities::open(&settings).unwrap();
    let ann = showing("ann", "password", "c");
    assert_eq!(outcome(&all, ann, &ALL).await, Ok("ann".to_owned()));
    // With nobody left to check slowly, only what is remembered gets in.
    all.people.close();
    assert_eq!(outcome(&all, ann, &ALL).await, Ok("ann".to_owned()));
    assert_eq!(outcome(&all, showing("ann", "Password", "c"), &ALL).await, Err(0x89));
    let later = Now { mono_ms: 5 + 600_000, ..NOW };
    assert!(all.identify(ann, &ALL, later).await.is_err());
    all.reload(&settings).unwrap();
    assert_eq!(outcome(&all, ann, &ALL).await, Err(0x89));
}

#[tokio::test]
async fn who_is_in_by_a_password_is_out_when_it_changes_and_only_then() {
    use futures::FutureExt as _;
    let folder = Folder::new();
    let (settings, secret) = two_users(&folder);
    let all = Identities::open(&settings).unwrap();
    let gateway = all.identify(showing("gw-1", &secret, "gw-1"), &ALL, NOW).await.unwrap();
    let Holds::Stored(was) = gateway.holds else { panic!("{gateway:?}") };
    let mut out = Box::pin(Arc::clone(&all).password_changed("gw-1".into(), was));
    assert!(out.as_mut().now_or_never().is_none());
    let text = fs::read_to_string(&settings.password_file).unwrap();
    folder.write("users", &text.replace("ann:", "bob:"));
    all.reload(&settings).unwrap();
    assert!(out.as_mut().now_or_never().is_none(), "somebody else's changed");
    folder.write("users", "");
    all.reload(&settings).unwrap();
    out.await;
}

#[tokio::test]
async fn who_is_in_by_a_token_is_out_when_its_key_goes_or_more_is_demanded() {
    use futures::FutureExt as _;
    let folder = Folder::new();
    let (settings, _) = two_users(&folder);
    let all = Identities::open(&settings).unwrap();
    let good = token("gw-1");
    let by = async || match all.identify(showing("", &good, "gw-1"), &ALL, NOW).await {
        Ok(Identity { holds: Holds::Token(_, by), .. }) => by,
        other => panic!("{other:?}"),
    };
    let mut ended = Box::pin(Arc::clone(&all).trust_ended(by().await));
    folder.write("users", "");
    all.reload(&settings).unwrap();
    assert!(ended.as_mut().now_or_never().is_none(), "only passwords changed");
    let strict = Settings { token_issuer: "somebody".to_owned(), ..settings.clone() };
    all.reload(&strict).unwrap();
    ended.await;
    all.reload(&settings).unwrap();
    let ended = Arc::clone(&all).trust_ended(by().await);
    folder.write("token", &SECRET.replace('0', "1"));
    all.reload(&settings).unwrap();
    ended.await;
}

#[tokio::test]
async fn a_bad_new_file_keeps_the_old_one_and_is_counted() {
    let folder = Folder::new();
    let (settings, secret) = two_users(&folder);
    let all = Identities::open(&settings).unwrap();
    let gateway = showing("gw-1", &secret, "gw-1");
    folder.write("users", "gw-1:plain text\n");
    let error = all.reload(&settings).unwrap_err().to_string();
    assert!(error.contains("auth.password_file") && error.contains("line 1"), "{error}");
    assert!(outcome(&all, gateway, &ALL).await.is_ok());
    assert_eq!(all.counters.bad_files.load(Ordering::Relaxed), 1);
    folder.write("users", &format!("ann:{CHEAP}\n"));
    all.reload(&settings).unwrap();
    assert_eq!(outcome(&all, gateway, &ALL).await, Err(0x86));
    fs::remove_file(&settings.password_file).unwrap();
    assert!(all.reload(&settings).is_err());
    assert!(Identities::open(&settings).is_err());
}

/// ann's password is "pencil"; the same salt as in RFC 7677.
fn scram_file() -> String {
    let Stored::Scram(ann) = Stored::for_scram(b"pencil").unwrap() else { panic!() };
    format!("ann:{}\nanonymous:{}\n", Stored::Scram(ann), Stored::for_strangers().unwrap())
}

/// A client's last message, made as RFC 5802 says, independent of what the server stores.
fn proof(user: &str, password: &[u8], question: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use ring::{digest, hmac, pbkdf2};
    let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    let part = |key: &str| question.split(',').find_map(|part| part.strip_prefix(key)).unwrap();
    let (nonce, salt) = (part("r="), STANDARD.decode(part("s=")).unwrap());
    let mut salted = [0; 32];
    let rounds = part("i=").parse().unwrap();
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password, &mut salted);
    let key = sign(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, key.as_ref());
    let last = format!("c=biws,r={nonce}");
    let said = format!("n={user},r=abc,{question},{last}");
    let signature = sign(stored.as_ref(), said.as_bytes());
    let proof: Vec<u8> =
        key.as_ref().iter().zip(signature.as_ref()).map(|(one, other)| one ^ other).collect();
    format!("{last},p={}", STANDARD.encode(proof))
}

fn scram(
    all: &Identities,
    user: &str,
    password: &[u8],
    client_id: &str,
) -> Result<Identity, Refusal> {
    let first = format!("n,,n={user},r=abc");
    let address = Some("198.51.100.7".parse().unwrap());
    let (exchange, question) = all.begin(first.as_bytes(), address, NOW)?;
    let question = String::from_utf8(question.to_vec()).unwrap();
    let last = proof(user, password, &question);
    let (identity, ours) = all.conclude(exchange, last.as_bytes(), client_id, NOW)?;
    assert!(ours.starts_with(b"v="));
    Ok(identity)
}

#[tokio::test]
async fn a_name_is_proved_by_scram_and_by_the_password_itself() {
    let folder = Folder::new();
    let password_file = folder.write("users", &scram_file());
    let settings = Settings { password_file, ..Settings::default() };
    let all = Identities::open(&settings).unwrap();
    assert!(all.knows_method("SCRAM-SHA-256") && !all.knows_method("SCRAM-SHA-1"));
    let identity = scram(&all, "ann", b"pencil", "any").unwrap();
    assert_eq!(identity.principal.as_deref(), Some("ann"));
    assert_eq!(scram(&all, "ann", b"Pencil", "any").unwrap_err().reason.0, 0x86);
    assert_eq!(outcome(&all, showing("ann", "pencil", "c"), &ALL).await, Ok("ann".to_owned()));
    assert_eq!(outcome(&all, showing("ann", "Pencil", "c"), &ALL).await, Err(0x86));
    assert_eq!(outcome(&all, showing("anonymous", "x", "c"), &ALL).await, Err(0x86));
    let Holds::Stored(was) = identity.holds else { panic!("{identity:?}") };
    folder.write("users", &scram_file());
    all.reload(&settings).unwrap();
    Arc::clone(&all).password_changed("ann".into(), was).await;
    let strict = Settings { person_client_id: Binding::MustEqual, ..settings };
    all.reload(&strict).unwrap();
    assert_eq!(scram(&all, "ann", b"pencil", "bob").unwrap_err().reason.0, 0x85);
    assert!(scram(&all, "ann", b"pencil", "ann").is_ok());
    folder.write("users", &format!("ann:{CHEAP}\n"));
    all.reload(&strict).unwrap();
    assert!(!all.knows_method("SCRAM-SHA-256"), "nobody has a verifier");
}

#[tokio::test]
async fn who_has_no_verifier_is_asked_alike_also_after_a_restart_and_refused_alike() {
    let folder = Folder::new();
    let (_, device) = Stored::for_new_device().unwrap();
    let text = scram_file() + &format!("gw:{device}\nbob:{CHEAP}\n");
    let password_file = folder.write("users", &text);
    let settings = Settings { password_file, ..Settings::default() };
    let (all, restarted) =
        (Identities::open(&settings).unwrap(), Identities::open(&settings).unwrap());
    let asked = |all: &Identities, user: &str| {
        let first = format!("n,,n={user},r=abc");
        let question = all.begin(first.as_bytes(), None, NOW).unwrap().1;
        let question = String::from_utf8(question.to_vec()).unwrap();
        let (nonce, rest) = question.split_once(',').unwrap();
        (nonce.to_owned(), rest.to_owned())
    };
    let mut refusals = Vec::new();
    for user in ["ann", "gw", "bob", "nobody"] {
        let (first, second) = (asked(&all, user), asked(&restarted, user));
        assert_eq!(first.1, second.1, "{user}");
        assert_ne!(first.0, second.0, "{user}");
        assert!(first.1.ends_with("==,i=8192"), "{first:?}");
        assert_eq!(first.1.len(), asked(&all, "ann").1.len());
        refusals.push(scram(&all, user, b"password", "c").unwrap_err());
    }
    assert!(refusals.windows(2).all(|pair| pair[0] == pair[1]), "{refusals:?}");
}

#[tokio::test]
async fn guessing_by_scram_is_slowed_and_blocked_however_many_begin_at_once() {
    let folder = Folder::new();
    let password_file = folder.write("users", &scram_file());
    let all = Identities::open(&Settings { password_file, ..Settings::default() }).unwrap();
    let first = b"n,,n=ann,r=abc";
    let begun: Vec<_> = (0..12).map(|_| all.begin(first, None, NOW).unwrap().0).collect();
    let mut outcomes = Vec::new();
    for exchange in begun {
        outcomes.push(all.conclude(exchange, b"c=biws,r=abc,p=", "c", NOW).unwrap_err());
    }
    assert_eq!(outcomes[9].delay, Duration::from_secs(5));
    assert!(outcomes[10..].iter().all(|one| one.reason == Reason::CONNECTION_RATE_EXCEEDED));
    assert!(all.begin(first, None, NOW).is_err());
    assert_eq!(all.counters.wrong.load(Ordering::Relaxed), 10);
    let refusal = all.begin(b"nonsense", None, NOW).unwrap_err();
    assert_eq!((refusal.reason.0, refusal.delay.is_zero()), (0x86, false));
}
