//! What a checked message says of itself: who sent it, the how manieth it is, and a sum over all of it.
//!
//! Text, so that a person can read a log: `gw1 d0 3 1234 5f0a9c11`, and after that as many digits as make it
//! long enough, which look random, so that they cost what readings of sensors cost.
//! An incarnation is one connection of a QoS 1 device, or the whole life of a QoS 2 device; `seq` counts from 0 in it. What a
//! QoS 1 device says again after a lost connection is therefore another message, and each may be read at most once.

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Edge and device, with a space between.
    pub source: String,
    /// Of the device.
    pub incarnation: u32,
    /// Within the incarnation.
    pub seq: u64,
}

impl Message {
    /// As it is sent, at least `bytes` long.
    pub fn payload(&self, bytes: usize) -> String {
        let Self { source, incarnation, seq } = self;
        let said = format!("{source} {incarnation} {seq}");
        let sum = crc32c::crc32c(said.as_bytes());
        let mut text = format!("{said} {sum:08x}");
        if text.len() < bytes {
            text.push(' ');
            let mut noise = u64::from(sum) | 1;
            while text.len() < bytes {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                text.push(char::from(b'0' + (noise >> 32) as u8 % 10));
            }
        }
        text
    }

    /// What a payload says; `None`: it is damaged, or was never a checked message.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        let mut words = text.splitn(6, ' ');
        let (edge, device) = (words.next()?, words.next()?);
        let (incarnation, seq) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let _sum = words.next()?;
        let message = Self { source: format!("{edge} {device}"), incarnation, seq };
        (message.payload(payload.len()) == text).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_and_any_damage_is_seen() {
        let message = Message { source: "gw1 d0".to_owned(), incarnation: 3, seq: 1234 };
        for bytes in [0, 22, 23, 24, 256] {
            let payload = message.payload(bytes);
            assert!(payload.len() >= bytes);
            assert_eq!(Message::read(payload.as_bytes()).as_ref(), Some(&message));
            for at in 0..payload.len() {
                let mut damaged = payload.clone().into_bytes();
                damaged[at] ^= 1;
                assert_eq!(Message::read(&damaged), None, "byte {at} of {payload}");
            }
        }
    }
}
