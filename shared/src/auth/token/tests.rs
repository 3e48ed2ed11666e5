//! The standard's own examples, and every way a token can be wrong.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, Ed25519KeyPair,
    },
};
use serde_json::json;

use super::*;

const SECRET: &[u8; 32] = b"0123456789abcdef0123456789abcdef";
const NOW_MS: i64 = 1_700_000_000_000;
const EXP: i64 = 1_700_000_100;

fn encode(part: &str) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

fn signed(header: &str, claims: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", encode(header), encode(claims));
    let mac = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{mac}")
}

fn hs256(secret: &[u8]) -> impl FnOnce(&[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    move |message| hmac::sign(&key, message).as_ref().to_vec()
}

fn by_secret(claims: Value) -> String {
    signed(r#"{"alg":"HS256"}"#, &claims.to_string(), hs256(SECRET))
}

fn tokens() -> Tokens {
    let mut tokens = Tokens::new("", "", "");
    tokens.add_secret(SECRET).unwrap();
    tokens
}

fn check(claims: Value) -> Result<String, Refused> {
    tokens().verify(&by_secret(claims), NOW_MS).map(|token| token.principal.to_string())
}

/// RFC 7515, A.1 to A.3.
#[test]
fn the_examples_of_the_standard_verify() {
    const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let keys = json!({ "keys": [
        { "kty": "oct", "alg": "HS256", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow" },
        { "kty": "RSA", "alg": "RS256", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ" },
        { "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" },
    ]});
    let mut tokens = Tokens::new("", "", "iss");
    tokens.add_public(keys.to_string().as_bytes()).unwrap();
    assert_eq!(tokens.len(), 3);
    for (header, mac) in [
        ("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
        (
            "eyJhbGciOiJSUzI1NiJ9",
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            "eyJhbGciOiJFUzI1NiJ9",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ] {
        let token = format!("{header}.{CLAIMS}.{mac}");
        let verified = tokens.verify(&token, 1_300_819_000_000).unwrap();
        assert_eq!(verified.principal, "joe");
        assert_eq!(verified.expires_ms, (1_300_819_380 + LEEWAY_S) * 1000);
        assert_eq!(tokens.verify(&token, verified.expires_ms), Err(Refused::Expired));
        let other = format!("{header}.{}x.{mac}", CLAIMS.trim_end_matches('Q'));
        assert_eq!(tokens.verify(&other, 1_300_819_000_000), Err(Refused::Signature));
    }
}

#[test]
fn pem_keys_of_every_kind_verify_what_they_signed() {
    let elliptic = |pair: &KeyPair, algorithm: &'static EcdsaSigningAlgorithm| {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, &pair.serialize_der(), &random).unwrap();
        move |message: &[u8]| key.sign(&random, message).unwrap().as_ref().to_vec()
    };
    let claims = json!({ "sub": "gw-1", "exp": EXP }).to_string();
    let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let edwards = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let ed = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&edwards.serialize_der()).unwrap();
    let sign_256 = elliptic(&p256, &ECDSA_P256_SHA256_FIXED_SIGNING);
    let sign_384 = elliptic(&p384, &ECDSA_P384_SHA384_FIXED_SIGNING);
    let cases = [
        (p256.public_key_pem(), signed(r#"{"alg":"ES256"}"#, &claims, sign_256)),
        (p384.public_key_pem(), signed(r#"{"alg":"ES384"}"#, &claims, sign_384)),
        (
            edwards.public_key_pem(),
            signed(r#"{"alg":"EdDSA"}"#, &claims, |message| ed.sign(message).as_ref().to_vec()),
        ),
        (RSA_PEM.to_owned(), RSA_TOKEN.to_owned()),
    ];
    let mut all = Tokens::new("", "", "");
    for (pem, token) in &cases {
        let mut one = Tokens::new("", "", "");
        one.add_public(pem.as_bytes()).unwrap();
        assert_eq!(one.verify(token, NOW_MS).unwrap().principal, "gw-1");
        all.add_public(pem.as_bytes()).unwrap();
        for (other, _) in cases.iter().filter(|(other, _)| other != pem) {
            let mut wrong = Tokens::new("", "", "");
            wrong.add_public(other.as_bytes()).unwrap();
            assert_eq!(wrong.verify(token, NOW_MS), Err(Refused::NoKey));
        }
    }
    for (_, token) in &cases {
        assert!(all.verify(token, NOW_MS).is_ok());
    }
}

#[test]
fn the_algorithm_is_the_keys_and_never_the_tokens() {
    let claims = json!({ "sub": "a", "exp": EXP }).to_string();
    let mut public = Tokens::new("", "", "");
    public.add_public(RSA_PEM.as_bytes()).unwrap();
    // The public key taken for a shared secret.
    let confused = signed(r#"{"alg":"HS256"}"#, &claims, hs256(RSA_PEM.as_bytes()));
    assert_eq!(public.verify(&confused, NOW_MS), Err(Refused::NoKey));
    for none in [r#"{"alg":"none"}"#, r#"{"alg":"NONE"}"#, r#"{"alg":""}"#, r#"{"alg":"HS512"}"#] {
        let token = signed(none, &claims, |_| Vec::new());
        assert_eq!(tokens().verify(&token, NOW_MS), Err(Refused::NoKey), "{none}");
    }
    assert_eq!(
        tokens().verify(&signed(r#"{"alg":"HS256"}"#, &claims, |_| Vec::new()), NOW_MS),
        Err(Refused::Signature)
    );
    assert_eq!(
        tokens().verify(&signed(r#"{"alg":"HS256"}"#, &claims, hs256(b"another")), NOW_MS),
        Err(Refused::Signature)
    );
    assert_eq!(Tokens::new("", "", "").verify(&by_secret(json!({})), NOW_MS), Err(Refused::NoKey));
}

#[test]
fn what_is_no_token_is_refused() {
    let claims = json!({ "sub": "a", "exp": EXP }).to_string();
    let good = by_secret(json!({ "sub": "a", "exp": EXP }));
    assert!(tokens().verify(&good, NOW_MS).is_ok());
    for bad in [
        "",
        ".",
        "..",
        "a.b.c",
        "....",
        &format!("{good}="),
        &format!("{good}.x"),
        &"x".repeat(TOKEN_BYTES + 1),
    ] {
        assert_eq!(tokens().verify(bad, NOW_MS), Err(Refused::Form), "{bad}");
    }
    for header in [
        "{}",
        "[]",
        r#"{"alg":1}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"HS256","crit":["exp"]}"#,
    ] {
        let token = signed(header, &claims, hs256(SECRET));
        assert_eq!(tokens().verify(&token, NOW_MS), Err(Refused::Form), "{header}");
    }
}

#[test]
fn claims_are_demanded_and_checked() {
    assert_eq!(check(json!({ "sub": "a", "exp": EXP })), Ok("a".to_owned()));
    assert_eq!(check(json!({ "sub": "a", "exp": EXP as f64 + 0.5 })), Ok("a".to_owned()));
    for (claims, refused) in [
        (json!({ "sub": "a" }), Refused::NoExpiry),
        (json!({ "sub": "a", "exp": "4000000000" }), Refused::Form),
        (json!({ "sub": "a", "exp": null }), Refused::Form),
        (json!({ "sub": "a", "exp": 1 }), Refused::Expired),
        (json!({ "sub": "a", "exp": -1e300 }), Refused::Expired),
        (json!({ "sub": "a", "exp": EXP, "nbf": EXP }), Refused::Early),
        (json!({ "sub": "a", "exp": EXP, "nbf": "x" }), Refused::Form),
        (json!({ "sub": "a", "exp": EXP, "aud": "them" }), Refused::Audience),
        (json!({ "exp": EXP }), Refused::Nobody),
        (json!({ "exp": EXP, "sub": 7 }), Refused::Nobody),
        (json!({ "exp": EXP, "sub": "" }), Refused::Nobody),
        (json!({ "exp": EXP, "sub": "anonymous" }), Refused::Nobody),
        (json!({ "exp": EXP, "sub": "a\u{0}" }), Refused::Nobody),
        (json!(["sub"]), Refused::NoExpiry),
    ] {
        assert_eq!(check(claims.clone()), Err(refused), "{claims}");
    }
    let mut strict = Tokens::new("us", "edge", "name");
    strict.add_secret(SECRET).unwrap();
    for (iss, aud, expected) in [
        (json!("us"), json!("edge"), Ok("n")),
        (json!("us"), json!(["x", "edge"]), Ok("n")),
        (json!("us"), json!(["x"]), Err(Refused::Audience)),
        (json!("us"), json!(null), Err(Refused::Audience)),
        (json!("them"), json!("edge"), Err(Refused::Issuer)),
        (json!(null), json!("edge"), Err(Refused::Issuer)),
    ] {
        let token =
            by_secret(json!({ "name": "n", "sub": "s", "exp": EXP, "iss": iss, "aud": aud }));
        let found = strict.verify(&token, NOW_MS).map(|token| token.principal.to_string());
        assert_eq!(found.as_deref(), expected.as_ref().copied(), "{iss} {aud}");
    }
}

#[test]
fn a_key_id_chooses_among_keys() {
    let jwk = |id: &str, secret: &[u8]| json!({ "kty": "oct", "alg": "HS256", "kid": id, "k": URL_SAFE_NO_PAD.encode(secret) });
    let set = json!({ "keys": [jwk("one", SECRET), jwk("two", &[7; 32])] });
    let mut tokens = Tokens::new("", "", "");
    tokens.add_public(set.to_string().as_bytes()).unwrap();
    let claims = json!({ "sub": "a", "exp": EXP }).to_string();
    for (header, expected) in [
        (r#"{"alg":"HS256","kid":"one"}"#, None),
        (r#"{"alg":"HS256"}"#, None),
        (r#"{"alg":"HS256","kid":"two"}"#, Some(Refused::Signature)),
        (r#"{"alg":"HS256","kid":"three"}"#, Some(Refused::NoKey)),
    ] {
        let found = tokens.verify(&signed(header, &claims, hs256(SECRET)), NOW_MS);
        assert_eq!(found.err(), expected, "{header}");
    }
}

#[test]
fn bad_key_files_are_refused() {
    let mut tokens = Tokens::new("", "", "");
    assert_eq!(tokens.add_secret(b"short\n"), Err(KeyError::ShortSecret));
    assert_eq!(tokens.add_secret(RSA_PEM.as_bytes()), Err(KeyError::PemSecret));
    for file in [
        "",
        "text",
        "{}",
        r#"{"keys":{}}"#,
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    ] {
        assert_eq!(tokens.add_public(file.as_bytes()), Err(KeyError::Form), "{file}");
    }
    for jwk in [
        json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" }),
        json!({ "kty": "EC", "crv": "P-521", "x": "AA", "y": "AA" }),
        json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }),
        json!({ "kty": "EC", "crv": "P-256", "alg": "HS256", "x": "AA", "y": "AA" }),
        json!({ "kty": "oct", "k": "AA" }),
        json!("x"),
    ] {
        let set = json!({ "keys": [jwk] }).to_string();
        assert!(matches!(tokens.add_public(set.as_bytes()), Err(KeyError::Jwk(..))), "{set}");
    }
    assert!(tokens.is_empty());
}

const RSA_PEM: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA2L6SmuckYi3KCBf6agr1\n\
yiqd73pRVfGnywH+mPU93xx7H+UDCIXrXAgXqDvaj8ZsPp+x01+P9XqFHfTc07dQ\n\
N5d7qrepbKyF+BV86M5FHa7AczC5SfOgGCzDm+HwAAByrekU8QmLRMrv+lK5uoH4\n\
goQ4ZQbRmyyH3I3240Zzt0jSH3GvrghVtVVCj0MQOjoCCWyQfRQjhk78R6r4EIAP\n\
x9Dw1j8wPUkLm/QRjBlYlcsnnY1l5FOvdRAaEYHOkWkdJor5boprBShqMlXWf7qM\n\
ZoIxdYwZyfIjyKVhbrc6BqiqiEeeWv1FFO7T8UZYiULKadH0MaSozYvJxv+9vUIz\n\
VQIDAQAB\n\
-----END PUBLIC KEY-----\n\
";

/// Made with openssl: `{"sub":"gw-1","exp":2000000000}`.
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJndy0xIiwiZXhwIjoyMDAwMDAwMDAwfQ.rAVQICVuW7C7i3sR0IGNLJlFfriPwRdjSrhkn8VJGKyBZGoHOR0umzXDbgCs5uY2WemJqh322aFXwg5UlO5LQrljpB0FR68L-lNhGZckV8FsoQYgyTBZk7LmLkOxnwT5dX05v22_UYBf4lDoW-0J7GMeSSv7xhyWXB8uxuaxnlfNvE4pJchNu3_j64yVdhr6_xns4FnmlJjcwBeTgI1nqQtt5lqGlDR4WNgU1cljOGJW3T8xVH_xUlkyIAnkNYz0i97YdkFP1hcrYC0NTCTooqZS0Caxus26RK9ZfWXxiQ1kWYczMXFRK1C2itIiOwAhhe5yVCtV4jNjGqxFw4-z2g";

/// Kafka CVE-2025-27817 and its kind: a token that names its own key, or an address to get it from.
#[test]
fn a_token_brings_no_key_and_makes_nothing_be_fetched() {
    let mut tokens = tokens();
    let known = json!({ "keys": [{ "kty": "oct", "alg": "HS256", "kid": "a", "k": URL_SAFE_NO_PAD.encode(SECRET) }] });
    tokens.add_public(known.to_string().as_bytes()).unwrap();
    let theirs = [7; 32];
    let claims = json!({ "sub": "ann", "exp": EXP }).to_string();
    let jwk = json!({ "kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(theirs) });
    for header in [
        json!({ "alg": "HS256", "jwk": jwk }),
        json!({ "alg": "HS256", "jku": "http://192.0.2.1/keys", "kid": "b" }),
        json!({ "alg": "HS256", "x5u": "file:///etc/passwd", "x5c": ["AAAA"] }),
        json!({ "alg": "HS256", "kid": "../../../../dev/null" }),
    ] {
        let header = header.to_string();
        let forged = signed(&header, &claims, hs256(&theirs));
        assert_eq!(tokens.verify(&forged, NOW_MS), Err(Refused::Signature), "{header}");
        let right = signed(&header, &claims, hs256(SECRET));
        assert!(tokens.verify(&right, NOW_MS).is_ok(), "passed over: {header}");
    }
}
