//! What the edge is told: the log's outcome as a PUBACK. Pure; the one place where the bridge names reason codes for it.
//!
//! ```text
//! appended, duplicate   0x00
//! gap                   0x83 with user property `expected` = next sequence: go back to there
//! bad or too large      0x99: permanent, sending it again does not help; PUBACK has no code for too large, so words say it
//! store fails           0x80: try again
//! epoch used twice      DISCONNECT 0x8E with user property `clash` = epoch: begin a new epoch for what is unsent
//! ```

use bytestring::ByteString;
use tributary_shared::mqtt::packet::{Ack, PacketId, Reason};

use super::upload::Refusal;
use crate::log::{Committed, LogError};

/// Longest reason string, bytes: any client's largest packet has room for it.
const REASON_BYTES_MAX: usize = 256;

/// The outcome of one upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Now durable.
    Appended,
    /// Was durable already.
    Duplicate,
    /// Earlier sequences are missing.
    Gap {
        /// The sequence to go on from.
        expected: u64,
    },
    /// Other records came before under its epoch and sequences.
    Clash,
    /// Refused for good.
    Refused {
        /// Code.
        reason: Reason,
        /// For people.
        detail: String,
    },
    /// Not done now.
    Failed {
        /// For people.
        detail: String,
    },
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { reason: refusal.reason(), detail: refusal.to_string() }
    }
}

impl From<LogError> for Answer {
    fn from(error: LogError) -> Self {
        let detail = error.to_string();
        match error {
            LogError::EdgeGap { expected } => Self::Gap { expected },
            LogError::EdgeClash => Self::Clash,
            LogError::BatchTooLarge { .. } | LogError::BadBatch(_) | LogError::KeylessRecord => {
                Self::Refused { reason: Reason::PAYLOAD_FORMAT_INVALID, detail }
            }
            _ => Self::Failed { detail },
        }
    }
}

impl From<Result<Committed, LogError>> for Answer {
    fn from(result: Result<Committed, LogError>) -> Self {
        match result {
            Ok(committed) if committed.duplicate => Self::Duplicate,
            Ok(_) => Self::Appended,
            Err(error) => error.into(),
        }
    }
}

impl Answer {
    /// The PUBACK that says it. A clash ends the connection instead.
    pub(super) fn to_ack(&self, packet_id: PacketId) -> Ack {
        let mut ack = Ack::new(packet_id, Reason::SUCCESS);
        match self {
            Self::Appended | Self::Duplicate => {}
            Self::Gap { expected } => {
                ack.reason = Reason::IMPLEMENTATION_SPECIFIC;
                ack.reason_string = Some(format!("sequence {expected} is next").into());
                ack.user_properties = vec![("expected".into(), expected.to_string().into())];
            }
            Self::Clash => ack.reason = Reason::IMPLEMENTATION_SPECIFIC,
            Self::Refused { reason, detail } => {
                ack.reason = *reason;
                ack.reason_string = Some(words(detail));
            }
            Self::Failed { detail } => {
                ack.reason = Reason::UNSPECIFIED;
                ack.reason_string = Some(words(detail));
            }
        }
        ack
    }
}

/// As a reason string: no longer than needed, nothing that MQTT forbids in a string.
pub(super) fn words(detail: &str) -> ByteString {
    let shown = detail.get(..detail.floor_char_boundary(REASON_BYTES_MAX)).unwrap_or_default();
    shown.replace(char::is_control, " ").into()
}

#[cfg(test)]
mod tests {
    use tributary_shared::record::BatchError;

    use super::*;
    use crate::engine::EngineError;

    #[test]
    fn every_outcome_has_its_code() {
        let done = |duplicate| Ok(Committed { base_offsets: vec![], duplicate });
        let too_large = LogError::BatchTooLarge { size: 2, limit: 1 };
        let store = LogError::Engine(EngineError::Store("disk".into()));
        for (result, reason, expected) in [
            (done(false), 0x00, None),
            (done(true), 0x00, None),
            (Err(LogError::EdgeGap { expected: 41 }), 0x83, Some("41")),
            (Err(too_large), 0x99, None),
            (Err(LogError::BadBatch(BatchError::Magic(1))), 0x99, None),
            (Err(store), 0x80, None),
            (Err(LogError::EdgeClash), 0x83, None),
            (Err(LogError::Closed), 0x80, None),
            (Err(LogError::NotOwner), 0x80, None),
        ] {
            let ack = Answer::from(result).to_ack(PacketId::MIN);
            assert_eq!(ack.reason.0, reason);
            assert_eq!(ack.user_properties.first().map(|(_, value)| &**value), expected);
        }
    }

    #[test]
    fn a_reason_string_is_short_and_legal() {
        assert_eq!(words("a\0b\nc"), "a b c");
        assert_eq!(words(&"ü".repeat(1000)).len(), REASON_BYTES_MAX);
    }
}
