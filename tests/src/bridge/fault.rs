//! What happens in a round of a run over the bridge. Not here: doing it (`mod`), what a bad link does (`proxy`).

use super::points::Point;

/// What happens in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the edge; sometimes again while it starts.
    KillEdge,
    /// SIGKILL of the cloud; sometimes again while it starts.
    KillCloud,
    /// Both within a few milliseconds.
    KillBoth,
    /// The power of the edge's disk, then SIGKILL.
    CutEdge,
    /// Nobody falls; a connection over the bad link meets its trouble.
    Link,
    /// The edge falls at this system call.
    EdgeAt(Point),
    /// The cloud falls at this system call.
    CloudAt(Point),
}

impl Fault {
    /// Without its numbers.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillEdge => "KillEdge",
            Self::KillCloud => "KillCloud",
            Self::KillBoth => "KillBoth",
            Self::CutEdge => "CutEdge",
            Self::Link => "Link",
            Self::EdgeAt(_) => "EdgeAt",
            Self::CloudAt(_) => "CloudAt",
        }
    }
}
