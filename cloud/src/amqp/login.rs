//! SASL PLAIN and AMQPLAIN: who a client says it is, and whether that is so.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};
use tributary_shared::amqp::{Table, Value, wire::Reader};

/// What is offered.
pub(super) const MECHANISMS: &str = "PLAIN AMQPLAIN";

/// A user name and password as sent.
#[derive(PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    password: Bytes,
}

/// Reads a response; `None`: not one of the mechanism.
pub(super) fn read(mechanism: &str, response: &Bytes) -> Option<Credentials> {
    match mechanism {
        "PLAIN" => {
            let mut parts = response.splitn(3, |byte| *byte == 0);
            let _authorize_as = parts.next()?;
            let (user, password) = (parts.next()?, parts.next()?);
            Some(Credentials {
                user: std::str::from_utf8(user).ok()?.to_owned(),
                password: Bytes::copy_from_slice(password),
            })
        }
        "AMQPLAIN" => {
            // A table without its length.
            let mut sized = BytesMut::with_capacity(response.len() + 4);
            sized.put_u32(u32::try_from(response.len()).ok()?);
            sized.extend_from_slice(response);
            let table = Table::decode(&mut Reader::new(sized.freeze())).ok()?;
            let text = |name: &str| match table.get(name) {
                Some(Value::Text(text)) => Some(text.clone()),
                _ => None,
            };
            let user = String::from_utf8(text("LOGIN")?.to_vec()).ok()?;
            Some(Credentials { user, password: text("PASSWORD")? })
        }
        _ => None,
    }
}

/// `guest` with password `guest` may come from this machine; there are no other users yet.
pub(super) fn allowed(credentials: &Credentials, from: IpAddr) -> bool {
    let user = same(credentials.user.as_bytes(), b"guest");
    let password = same(&credentials.password, b"guest");
    user & password & from.to_canonical().is_loopback()
}

/// In time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    differences == 0 && a.len() == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_gets_in_from_here_only() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let there: IpAddr = "192.0.2.1".parse().unwrap();
        let plain = |text: &'static [u8]| read("PLAIN", &Bytes::from_static(text)).unwrap();
        assert!(allowed(&plain(b"\0guest\0guest"), here));
        assert!(allowed(&plain(b"guest\0guest\0guest"), "::ffff:127.0.0.1".parse().unwrap()));
        assert!(!allowed(&plain(b"\0guest\0guest"), there));
        assert!(!allowed(&plain(b"\0guest\0gues"), here));
        assert!(!allowed(&plain(b"\0guest\0"), here));
        assert!(!allowed(&plain(b"\0\0"), here));
    }

    #[test]
    fn amqplain_is_a_table_without_its_length() {
        let mut out = Vec::new();
        Table::default()
            .with("LOGIN", Value::text("guest"))
            .with("PASSWORD", Value::text("guest"))
            .encode(&mut out);
        let credentials = read("AMQPLAIN", &Bytes::from(out).slice(4..)).unwrap();
        assert!(allowed(&credentials, "::1".parse().unwrap()));
        for (mechanism, response) in
            [("AMQPLAIN", &b"\x05LOGIN"[..]), ("PLAIN", b"guest"), ("EXTERNAL", b"")]
        {
            assert!(read(mechanism, &Bytes::copy_from_slice(response)).is_none(), "{mechanism}");
        }
    }
}
