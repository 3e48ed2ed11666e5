//! Our errors as Kafka error codes, each mapped once.
//!
//! Change here: which code a fact gets. Not here: when a request fails (`api`, `log`, `group`).

use tributary_shared::record::BatchError;

use crate::{group::GroupError, log::LogError};

/// Kafka error codes we answer with (Kafka protocol guide, "Error Codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub(super) enum Code {
    UnknownServerError = -1,
    None = 0,
    OffsetOutOfRange = 1,
    CorruptMessage = 2,
    UnknownTopicOrPartition = 3,
    LeaderNotAvailable = 5,
    NotLeaderOrFollower = 6,
    MessageTooLarge = 10,
    OffsetMetadataTooLarge = 12,
    CoordinatorLoadInProgress = 14,
    CoordinatorNotAvailable = 15,
    NotCoordinator = 16,
    InvalidTopic = 17,
    InvalidRequiredAcks = 21,
    IllegalGeneration = 22,
    InconsistentGroupProtocol = 23,
    InvalidGroupId = 24,
    UnknownMemberId = 25,
    InvalidSessionTimeout = 26,
    RebalanceInProgress = 27,
    UnsupportedVersion = 35,
    TopicAlreadyExists = 36,
    InvalidPartitions = 37,
    InvalidReplicationFactor = 38,
    InvalidReplicaAssignment = 39,
    InvalidConfig = 40,
    NotController = 41,
    InvalidRequest = 42,
    UnsupportedForMessageFormat = 43,
    PolicyViolation = 44,
    OutOfOrderSequenceNumber = 45,
    InvalidProducerEpoch = 47,
    TransactionalIdAuthorizationFailed = 53,
    KafkaStorageError = 56,
    NonEmptyGroup = 68,
    GroupIdNotFound = 69,
    FencedLeaderEpoch = 74,
    UnknownLeaderEpoch = 75,
    UnsupportedCompressionType = 76,
    MemberIdRequired = 79,
    GroupMaxSizeReached = 81,
    FencedInstanceId = 82,
    InvalidRecord = 87,
    UnknownTopicId = 100,
    UnsupportedEndpoint = 115,
}

impl Code {
    /// As it stands in responses.
    pub(super) fn number(self) -> i16 {
        self as i16
    }

    /// Of a change of the streams, which the owner of shard 0 makes: nobody is that, or it cannot be asked.
    pub(super) fn of_change(error: &LogError) -> Self {
        match error {
            LogError::NotOwner | LogError::Closed => Self::NotController,
            error => error.into(),
        }
    }
}

impl From<&LogError> for Code {
    fn from(error: &LogError) -> Self {
        match error {
            LogError::StreamNotFound(_) | LogError::PartitionNotFound(..) => {
                Self::UnknownTopicOrPartition
            }
            LogError::StreamExists(_) => Self::TopicAlreadyExists,
            LogError::BadStreamName(_) => Self::InvalidTopic,
            LogError::BadConfig(_) => Self::InvalidConfig,
            LogError::OffsetOutOfRange { .. } => Self::OffsetOutOfRange,
            LogError::BatchTooLarge { .. } => Self::MessageTooLarge,
            LogError::BadBatch(error) => error.into(),
            LogError::OutOfOrderSequence { .. } => Self::OutOfOrderSequenceNumber,
            LogError::StaleProducerEpoch { .. } => Self::InvalidProducerEpoch,
            LogError::KeylessRecord => Self::InvalidRecord,
            LogError::NotOwner | LogError::Closed => Self::NotLeaderOrFollower,
            LogError::Engine(_) => Self::KafkaStorageError,
            LogError::EdgeGap { .. } | LogError::EdgeClash => Self::UnknownServerError,
        }
    }
}

impl From<&BatchError> for Code {
    fn from(error: &BatchError) -> Self {
        match error {
            BatchError::Truncated { .. } | BatchError::Length(_) | BatchError::Crc { .. } => {
                Self::CorruptMessage
            }
            BatchError::Magic(_) => Self::UnsupportedForMessageFormat,
            BatchError::UnknownCompression(_) => Self::UnsupportedCompressionType,
            _ => Self::InvalidRecord,
        }
    }
}

impl From<&GroupError> for Code {
    fn from(error: &GroupError) -> Self {
        match error {
            GroupError::BadGroupId => Self::InvalidGroupId,
            GroupError::BadSessionTimeout { .. } => Self::InvalidSessionTimeout,
            GroupError::InconsistentProtocol => Self::InconsistentGroupProtocol,
            GroupError::UnknownMember => Self::UnknownMemberId,
            GroupError::MemberIdRequired { .. } => Self::MemberIdRequired,
            GroupError::IllegalGeneration => Self::IllegalGeneration,
            GroupError::RebalanceInProgress => Self::RebalanceInProgress,
            GroupError::FencedInstance => Self::FencedInstanceId,
            GroupError::Full { .. } => Self::GroupMaxSizeReached,
            GroupError::TooManyGroups { .. } | GroupError::MetadataTooLarge { .. } => {
                Self::PolicyViolation
            }
            GroupError::OffsetMetadataTooLarge { .. } => Self::OffsetMetadataTooLarge,
            GroupError::NotEmpty => Self::NonEmptyGroup,
            GroupError::NotFound => Self::GroupIdNotFound,
            GroupError::Restarting => Self::CoordinatorLoadInProgress,
            GroupError::Log(LogError::NotOwner) => Self::NotCoordinator,
            GroupError::Log(LogError::Closed) => Self::CoordinatorNotAvailable,
            GroupError::Log(error) => error.into(),
        }
    }
}
