//! What members ask a group and what it answers, in no protocol's encoding.
//!
//! Assignments and subscriptions are opaque bytes: `consumer`, `connect` and any other protocol type pass through.

use bytes::Bytes;

use crate::log::LogError;

/// Why a group refuses.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)]
pub enum GroupError {
    #[error("a group needs a name")]
    BadGroupId,
    #[error("session timeout {asked_ms} ms is outside {min_ms}..={max_ms} ms")]
    BadSessionTimeout { asked_ms: i64, min_ms: u64, max_ms: u64 },
    #[error("no assignment protocol is common to all members, or the protocol type differs")]
    InconsistentProtocol,
    #[error("member is not in the group")]
    UnknownMember,
    #[error("join again as `{member_id}`")]
    MemberIdRequired { member_id: String },
    #[error("generation is not the group's")]
    IllegalGeneration,
    #[error("group is rebalancing")]
    RebalanceInProgress,
    #[error("another member took this instance id")]
    FencedInstance,
    #[error("group has its {limit} members")]
    Full { limit: usize },
    #[error("there are {limit} groups already")]
    TooManyGroups { limit: usize },
    #[error("member metadata of {size} bytes is over the limit of {limit}")]
    MetadataTooLarge { size: usize, limit: usize },
    #[error("offset metadata of {size} bytes is over the limit of {limit}")]
    OffsetMetadataTooLarge { size: usize, limit: usize },
    #[error("group has members")]
    NotEmpty,
    #[error("group not found")]
    NotFound,
    #[error("group is being restarted, ask again")]
    Restarting,
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Who speaks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberRef {
    /// Empty: not known yet.
    pub member_id: String,
    /// Static membership (KIP-345).
    pub instance_id: Option<String>,
}

/// A member asks to be in the next generation.
#[derive(Debug, Clone, Default)]
pub struct Join {
    /// Who; with an empty id: a new member.
    pub member: MemberRef,
    /// Its client's name for itself.
    pub client_id: String,
    /// Where it connects from.
    pub client_host: String,
    /// Dead when silent for longer, ms.
    pub session_timeout_ms: i64,
    /// Out of the group when it has not rejoined a rebalance by then, ms.
    pub rebalance_timeout_ms: i64,
    /// `consumer`, `connect`, ...
    pub protocol_type: String,
    /// Assignment protocols it can do, best first, each with its metadata.
    pub protocols: Vec<(String, Bytes)>,
    /// A new member must be told its id and come again (KIP-394).
    pub id_required: bool,
    /// It knows that a leader may be told to keep the assignment (KIP-814).
    pub can_skip_assignment: bool,
}

/// A generation, as one member sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Joined {
    pub generation: i32,
    pub protocol_type: String,
    pub protocol: String,
    pub leader: String,
    pub member_id: String,
    /// The leader keeps the assignment as it is.
    pub skip_assignment: bool,
    /// All members, for the leader only.
    pub members: Vec<JoinedMember>,
}

/// One member, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct JoinedMember {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub metadata: Bytes,
}

/// A member asks for its share; the leader brings everyone's.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Sync {
    pub member: MemberRef,
    pub generation: i32,
    /// `None`: not said (before version 5).
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    /// Member id -> share.
    pub assignments: Vec<(String, Bytes)>,
}

/// A member's share.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Synced {
    pub protocol_type: String,
    pub protocol: String,
    pub assignment: Bytes,
}

/// A group as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Description {
    /// `Empty`, `PreparingRebalance`, `CompletingRebalance`, `Stable`, `Dead`.
    pub state: String,
    pub protocol_type: String,
    pub protocol: String,
    pub members: Vec<DescribedMember>,
}

/// A member as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DescribedMember {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub metadata: Bytes,
    pub assignment: Bytes,
}
