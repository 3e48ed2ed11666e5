//! What an edge uploads: any payload under any properties is refused in words or is what it says, within the limits.
//!
//! An input is: a choice (CRC and length made right or not), bytes for `ep`, `s` and `n`, the payload.

use tributary_shared::{
    mqtt::packet::{Publish, PublishProperties, Qos},
    record::Unpacked,
};

use crate::input::Input;

#[path = "../../cloud/src/bridge/upload.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod checks;

/// What a batch may unpack to here; small, so that inputs reach it.
const UNPACKED_MAX: usize = 64 * 1024;
/// Bytes before the records of a batch.
const HEADER: usize = 61;

/// Reads an upload as the cloud does.
pub fn read(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let numbers = [input.byte(), input.byte(), input.byte()].map(|byte| byte.to_string());
    let mut payload = input.0.to_vec();
    if choice & 1 != 0 {
        mend(&mut payload, &numbers);
    }
    let user_properties = ["ep", "s", "n"].into_iter().zip(&numbers);
    let publish = Publish {
        qos: Qos::AtLeastOnce,
        topic: "tributary/gw1/up/normal".into(),
        packet_id: std::num::NonZeroU16::new(1),
        payload: payload.into(),
        properties: PublishProperties {
            content_type: Some(checks::CONTENT_TYPE.into()),
            user_properties: user_properties
                .map(|(name, value)| (name.into(), value.as_str().into()))
                .collect(),
            ..PublishProperties::default()
        },
        ..Publish::default()
    };
    match checks::read(&publish, "gw1") {
        Err(refusal) => {
            assert!(!refusal.to_string().is_empty(), "every refusal has words");
            assert!(refusal.reason().is_error(), "and a code");
        }
        Ok(upload) => {
            let checks::Content::Batch(batch) = upload.content else { return };
            assert_eq!(batch.count(), upload.mark.count as usize);
            if let Ok(unpacked) = batch.unpack(UNPACKED_MAX) {
                records(&unpacked, batch.count());
            }
        }
    }
}

fn records(unpacked: &Unpacked, count: usize) {
    let mut whole = 0;
    for raw in unpacked {
        let Ok(raw) = raw else { return };
        let headers = raw.headers().take_while(Result::is_ok).count();
        assert!(headers <= raw.header_count, "no more headers than it says");
        let size = [raw.key, raw.value].into_iter().flatten().map(<[u8]>::len).sum::<usize>();
        assert!(size + 2 * headers <= UNPACKED_MAX, "the limit is kept");
        assert_eq!(raw.fingerprint(), raw.fingerprint());
        if let Ok(record) = unpacked.record(&raw) {
            assert_eq!(record.key.as_deref(), raw.key);
        }
        whole += 1;
    }
    assert_eq!(whole, count, "as many as it says, or an error");
}

/// Makes the fields right that random bytes never get right, so that what is behind them is reached.
fn mend(payload: &mut [u8], numbers: &[String; 3]) {
    let total = payload.len();
    if total < HEADER {
        return;
    }
    let number = |index: usize| numbers[index].parse::<i64>().unwrap_or_default();
    payload[8..12].copy_from_slice(&((total - 12) as u32).to_be_bytes());
    payload[16] = 2;
    payload[21] = 0;
    payload[22] &= 0x07;
    payload[23..27].copy_from_slice(&(number(2) as i32 - 1).to_be_bytes());
    payload[43..51].copy_from_slice(&number(0).to_be_bytes());
    payload[53..57].copy_from_slice(&(number(1) as i32).to_be_bytes());
    payload[57..61].copy_from_slice(&(number(2) as i32).to_be_bytes());
    let crc = crc32c::crc32c(&payload[21..]);
    payload[17..21].copy_from_slice(&crc.to_be_bytes());
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_seeds_hold() {
        for line in include_str!("../seeds/upload.txt").lines() {
            let text: String = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let bytes: Vec<u8> = (0..text.len() / 2)
                .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
                .collect();
            super::read(&bytes);
        }
    }
}
