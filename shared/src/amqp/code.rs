//! Reply codes of AMQP 0-9-1, and a refusal: what a close method tells the peer.

use std::fmt;

/// Reply codes a server sends (AMQP 0-9-1, 1.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[repr(u16)]
pub enum Code {
    Success = 200,
    ContentTooLarge = 311,
    NoRoute = 312,
    NoConsumers = 313,
    ConnectionForced = 320,
    InvalidPath = 402,
    AccessRefused = 403,
    NotFound = 404,
    ResourceLocked = 405,
    PreconditionFailed = 406,
    FrameError = 501,
    SyntaxError = 502,
    CommandInvalid = 503,
    ChannelError = 504,
    UnexpectedFrame = 505,
    ResourceError = 506,
    NotAllowed = 530,
    NotImplemented = 540,
    InternalError = 541,
}

impl Code {
    /// The constant's name, which RabbitMQ puts before every reply text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "REPLY_SUCCESS",
            Self::ContentTooLarge => "CONTENT_TOO_LARGE",
            Self::NoRoute => "NO_ROUTE",
            Self::NoConsumers => "NO_CONSUMERS",
            Self::ConnectionForced => "CONNECTION_FORCED",
            Self::InvalidPath => "INVALID_PATH",
            Self::AccessRefused => "ACCESS_REFUSED",
            Self::NotFound => "NOT_FOUND",
            Self::ResourceLocked => "RESOURCE_LOCKED",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::FrameError => "FRAME_ERROR",
            Self::SyntaxError => "SYNTAX_ERROR",
            Self::CommandInvalid => "COMMAND_INVALID",
            Self::ChannelError => "CHANNEL_ERROR",
            Self::UnexpectedFrame => "UNEXPECTED_FRAME",
            Self::ResourceError => "RESOURCE_ERROR",
            Self::NotAllowed => "NOT_ALLOWED",
            Self::NotImplemented => "NOT_IMPLEMENTED",
            Self::InternalError => "INTERNAL_ERROR",
        }
    }

    /// Closes the whole connection, not only the channel.
    pub const fn closes_connection(self) -> bool {
        matches!(self as u16, 320 | 402 | 501..=541)
    }
}

/// Why a method or a frame was refused, as close methods carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Code.
    pub code: Code,
    /// Text without the code's name.
    pub detail: String,
    /// Class and method of the culprit; zeros if none.
    pub culprit: (u16, u16),
}

impl Refusal {
    /// Without a culprit.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), culprit: (0, 0) }
    }

    /// With the method that caused it.
    #[must_use]
    pub fn by(mut self, culprit: (u16, u16)) -> Self {
        self.culprit = culprit;
        self
    }

    /// `NAME - detail`, cut at 255 bytes on a character boundary.
    pub fn text(&self) -> String {
        let mut text = format!("{} - {}", self.code.name(), self.detail);
        cut(&mut text);
        text
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code as u16, self.text())
    }
}

impl std::error::Error for Refusal {}

/// Cuts to what a short string holds.
fn cut(text: &mut String) {
    if text.len() > 255 {
        let end = text.floor_char_boundary(255);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_on_a_character_boundary() {
        let text = Refusal::new(Code::NotFound, "é".repeat(300)).text();
        assert!(text.len() <= 255 && text.len() >= 254);
        assert!(text.starts_with("NOT_FOUND - é"));
    }

    #[test]
    fn hard_errors_close_the_connection() {
        for code in
            [Code::FrameError, Code::NotAllowed, Code::InternalError, Code::ConnectionForced]
        {
            assert!(code.closes_connection());
        }
        for code in [Code::NotFound, Code::AccessRefused, Code::PreconditionFailed, Code::NoRoute] {
            assert!(!code.closes_connection());
        }
    }
}
