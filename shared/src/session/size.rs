//! Bytes of a version 5 PUBLISH, for clients that said how much they take (MQTT-3.1.2-24).

use super::Delivery;

/// Bytes of the whole packet.
pub(super) fn publish_bytes(delivery: &Delivery) -> usize {
    let message = &delivery.message;
    let from = &message.properties;
    let text =
        |text: &Option<bytestring::ByteString>| text.as_ref().map_or(0, |text| 3 + text.len());
    let user: usize =
        from.user_properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum();
    let ids: usize = delivery.subscription_ids.iter().map(|&id| 1 + varint(id as usize)).sum();
    let properties = from.payload_format.map_or(0, |_| 2)
        + delivery.expiry_s.map_or(0, |_| 5)
        + text(&from.content_type)
        + text(&from.response_topic)
        + from.correlation_data.as_ref().map_or(0, |data| 3 + data.len())
        + user
        + ids;
    let packet_id = if delivery.packet_id.is_some() { 2 } else { 0 };
    let rest = 2
        + message.topic.len()
        + packet_id
        + varint(properties)
        + properties
        + message.payload.len();
    1 + varint(rest) + rest
}

fn varint(number: usize) -> usize {
    match number {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}
