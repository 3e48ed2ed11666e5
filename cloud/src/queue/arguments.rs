//! PURE. The arguments of `queue.declare`: what is enforced, what is refused, and when two declarations differ.
//!
//! Enforced: `x-message-ttl x-expires x-max-length x-max-length-bytes x-overflow x-dead-letter-exchange
//! x-dead-letter-routing-key x-single-active-consumer`. `x-queue-type` may be `classic` or `quorum`: both are the same
//! queue here. Any other argument is taken and logged, as RabbitMQ does, but does nothing.

use bytestring::ByteString;
use tributary_shared::amqp::{Code, Refusal, Table, Value};

/// What happens to a message that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Overflow {
    #[default]
    DropHead,
    RejectPublish,
    RejectPublishDeadLetter,
}

/// The arguments, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arguments {
    /// Messages leave after this, ms.
    pub message_ttl_ms: Option<i64>,
    /// The queue goes when it is not used for this long, ms.
    pub expires_ms: Option<i64>,
    /// Ready messages at the most.
    pub max_length: Option<u64>,
    /// Bytes of their bodies at the most.
    pub max_length_bytes: Option<u64>,
    /// What goes then.
    pub overflow: Overflow,
    /// Where messages go that are rejected, expire or do not fit.
    pub dead_letter_exchange: Option<ByteString>,
    /// The key they go with, if not their own.
    pub dead_letter_key: Option<ByteString>,
    /// Only the oldest consumer gets messages.
    pub single_active: bool,
}

/// Those that make two declarations differ.
const COMPARED: [&str; 11] = [
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-single-active-consumer",
    "x-queue-type",
];

impl Arguments {
    /// Checks a table; `whose` is `queue 'q' in vhost '/'`.
    pub fn parse(table: &Table, whose: &str) -> Result<Self, Refusal> {
        let mut parsed = Self::default();
        for (name, value) in &table.0 {
            let bad = |why: String| {
                let detail = format!("invalid arg '{name}' for {whose}: {why}");
                Refusal::new(Code::PreconditionFailed, detail)
            };
            let number = |least: i64| match value.as_integer() {
                Some(n) if n >= least => Ok(n),
                Some(0) => Err(bad("{value_zero,0}".into())),
                Some(n) => Err(bad(format!("{{value_negative,{n}}}"))),
                None => Err(bad(format!("{{unacceptable_type,{}}}", value.type_name()))),
            };
            let text = || {
                let unacceptable = || bad(format!("{{unacceptable_type,{}}}", value.type_name()));
                value.as_text().filter(|text| text.len() <= 255).ok_or_else(unacceptable)
            };
            match &**name {
                "x-message-ttl" => parsed.message_ttl_ms = Some(number(0)?),
                "x-expires" => parsed.expires_ms = Some(number(1)?),
                "x-max-length" => parsed.max_length = Some(number(0)? as u64),
                "x-max-length-bytes" => parsed.max_length_bytes = Some(number(0)? as u64),
                "x-overflow" => {
                    parsed.overflow = match text()? {
                        "drop-head" => Overflow::DropHead,
                        "reject-publish" => Overflow::RejectPublish,
                        "reject-publish-dlx" => Overflow::RejectPublishDeadLetter,
                        _ => return Err(bad("invalid_overflow".into())),
                    };
                }
                "x-dead-letter-exchange" => parsed.dead_letter_exchange = Some(text()?.into()),
                "x-dead-letter-routing-key" => parsed.dead_letter_key = Some(text()?.into()),
                "x-single-active-consumer" => match value {
                    Value::Bool(active) => parsed.single_active = *active,
                    other => {
                        return Err(bad(format!("{{unacceptable_type,{}}}", other.type_name())));
                    }
                },
                "x-queue-type" => match text()? {
                    "classic" | "quorum" => {}
                    other => return Err(bad(format!("queue type '{other}' is not available"))),
                },
                other => tracing::info!(argument = other, queue = whose, "argument has no effect"),
            }
        }
        if parsed.dead_letter_key.is_some() && parsed.dead_letter_exchange.is_none() {
            let detail = format!(
                "invalid arg 'x-dead-letter-routing-key' for {whose}: \
                 routing_key_but_no_dlx_defined"
            );
            return Err(Refusal::new(Code::PreconditionFailed, detail));
        }
        Ok(parsed)
    }
}

/// The first argument in which a declaration differs from what there is, as RabbitMQ words it.
pub fn inequivalent(current: &Table, received: &Table, whose: &str) -> Result<(), Refusal> {
    let differs = |name: &&&str| match (current.get(name), received.get(name)) {
        (Some(a), Some(b)) if a.as_integer().is_some() => a.as_integer() != b.as_integer(),
        (a, b) => a != b,
    };
    let Some(name) = COMPARED.iter().find(differs) else { return Ok(()) };
    let show = |value: Option<&Value>| match value {
        None => "none".to_owned(),
        Some(value) => {
            let text = match value {
                Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
                Value::Bool(v) => v.to_string(),
                other => other.as_integer().map_or_else(|| "?".into(), |i| i.to_string()),
            };
            format!("the value '{text}' of type '{}'", value.type_name())
        }
    };
    let (received, current) = (show(received.get(name)), show(current.get(name)));
    let detail = format!(
        "inequivalent arg '{name}' for {whose}: received {received} but current is {current}"
    );
    Err(Refusal::new(Code::PreconditionFailed, detail))
}

/// The same for a flag.
pub fn same_flag(
    name: &str,
    current: impl ToString,
    received: impl ToString,
    whose: &str,
) -> Result<(), Refusal> {
    let (current, received) = (current.to_string(), received.to_string());
    if current == received {
        return Ok(());
    }
    let detail = format!(
        "inequivalent arg '{name}' for {whose}: received '{received}' but current is '{current}'"
    );
    Err(Refusal::new(Code::PreconditionFailed, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: &str = "queue 'q' in vhost '/'";

    #[test]
    fn a_differing_argument_is_worded_as_rabbitmq_words_it() {
        let five = Table::default().with("x-message-ttl", Value::I32(5));
        assert_eq!(
            inequivalent(&Table::default(), &five, Q).unwrap_err().text(),
            "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': \
             received the value '5' of type 'signedint' but current is none"
        );
        let wide = Table::default().with("x-message-ttl", Value::I64(5)).with("x-foo", Value::Void);
        assert_eq!(
            inequivalent(&five, &wide, Q),
            Ok(()),
            "width and unknown arguments do not matter"
        );
        assert_eq!(
            same_flag("durable", false, true, Q).unwrap_err().detail,
            "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'"
        );
    }

    #[test]
    fn bad_arguments_are_refused_and_unknown_ones_taken() {
        for (name, value) in [
            ("x-message-ttl", Value::I32(-1)),
            ("x-message-ttl", Value::text("5")),
            ("x-expires", Value::I32(0)),
            ("x-overflow", Value::text("explode")),
            ("x-queue-type", Value::text("stream")),
            ("x-dead-letter-routing-key", Value::text("k")),
        ] {
            let table = Table::default().with(name, value.clone());
            let refusal = Arguments::parse(&table, Q).unwrap_err();
            assert_eq!(refusal.code, Code::PreconditionFailed, "{name} {value:?}");
        }
        let table =
            Table::default().with("x-unheard-of", Value::Void).with("x-max-length", Value::U8(3));
        assert_eq!(Arguments::parse(&table, Q).unwrap().max_length, Some(3));
    }
}
