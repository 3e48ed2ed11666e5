//! Bytes <-> typed requests and responses: the only place that calls the codec crate.
//!
//! ```text
//! request:  size i32 | key i16 | version i16 | correlation i32 | client id (i16 length, nullable) | [tags] | body
//! response: size i32 | correlation i32 | [tags] | body
//! ```
//! In: bytes as they arrive. Out: a [`Request`] whose lengths were checked (`guard`). Not here: what to answer (`api`).

use bytes::{Buf, BufMut, Bytes, BytesMut};
pub(super) use kafka_protocol::{
    messages as wire,
    protocol::{Decodable, Encodable, HeaderVersion, StrBytes},
};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    guard::{self, BadRequest},
    schema,
};

/// Largest request that is not a Produce. A Fetch of 100,000 partitions has 3 MB.
const OTHER_MAX: usize = 8 * 1024 * 1024;

/// Room that is made before any byte of a frame came: what an idle connection costs.
const READ_IDLE: usize = 16 * 1024;

/// Room that is made at the least when more of a frame is to come.
const READ_STEP: usize = 64 * 1024;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Close {
    /// The peer closed between two frames.
    #[error("closed by the client")]
    Eof,
    #[error("closed by the client in the middle of a request")]
    EofInside,
    #[error("request of {size} bytes is outside 8..={limit}")]
    Size { size: i32, limit: usize },
    #[error("api key {key} version {version} is not served")]
    Unknown { key: i16, version: i16 },
    #[error("api key {key} version {version}: {source}")]
    Bad { key: i16, version: i16, source: BadRequest },
    #[error("request header: {0}")]
    Header(BadRequest),
    #[error("response does not encode: {0}")]
    Encode(String),
    #[error("idle for {0} s")]
    Idle(u64),
    /// There is no answer in which to say it.
    #[error("produce with acks=0 failed: {0}")]
    UnansweredProduce(String),
    #[error("no valid request within {0} s")]
    NoRequest(u64),
    #[error("server stops")]
    Stop,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A request, header read, lengths of the body checked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) key: i16,
    pub(super) version: i16,
    pub(super) correlation: i32,
    pub(super) client_id: Option<String>,
    pub(super) body: Bytes,
}

/// Reads one frame, without its size. The buffer grows with what was received, not with what was announced.
pub(super) async fn read_frame(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    limit: usize,
) -> Result<Bytes, Close> {
    loop {
        if let Some(head) = buffer.first_chunk::<4>() {
            let size = i32::from_be_bytes(*head);
            let is_produce =
                buffer.get(4..6).is_none_or(|key| key == schema::PRODUCE.to_be_bytes());
            let limit = if is_produce { limit } else { limit.min(OTHER_MAX) };
            let length = usize::try_from(size)
                .ok()
                .filter(|length| (8..=limit).contains(length))
                .ok_or(Close::Size { size, limit })?;
            if buffer.len() >= 4 + length {
                buffer.advance(4);
                return Ok(buffer.split_to(length).freeze());
            }
            let missing = 4 + length - buffer.len();
            // At most doubles what is there: a claim alone costs nothing.
            buffer.reserve(missing.min(buffer.len().max(READ_STEP)));
        } else {
            buffer.reserve(READ_IDLE);
        }
        if from.read_buf(buffer).await? == 0 {
            return Err(if buffer.is_empty() { Close::Eof } else { Close::EofInside });
        }
    }
}

/// Key and version of a frame of at least 8 bytes.
fn key_and_version(frame: &[u8]) -> Option<(i16, i16)> {
    let (key, rest) = frame.split_first_chunk::<2>()?;
    let version = rest.first_chunk::<2>()?;
    Some((i16::from_be_bytes(*key), i16::from_be_bytes(*version)))
}

/// Reads the header and checks the body. A version of ApiVersions that we do not know passes with an empty body: it has an
/// answer of its own.
pub(super) fn parse(mut frame: Bytes) -> Result<Request, Close> {
    let cut = || Close::Header(BadRequest::Truncated);
    let (key, version) = key_and_version(&frame).ok_or_else(cut)?;
    let api = schema::api(key).ok_or(Close::Unknown { key, version })?;
    frame.advance(4);
    let correlation = frame.try_get_i32().map_err(|_| cut())?;
    if !api.serves(version) {
        if key == schema::API_VERSIONS {
            return Ok(Request { key, version, correlation, client_id: None, body: Bytes::new() });
        }
        return Err(Close::Unknown { key, version });
    }
    let client_id = client_id(&mut frame)?;
    if api.is_flexible(version) {
        let rest = guard::skip_tags(&frame).map_err(Close::Header)?.len();
        frame.advance(frame.len() - rest);
    }
    guard::check(api, version, &frame).map_err(|source| Close::Bad { key, version, source })?;
    Ok(Request { key, version, correlation, client_id, body: frame })
}

/// The client id is a non-compact nullable string in every header version.
fn client_id(frame: &mut Bytes) -> Result<Option<String>, Close> {
    let cut = || Close::Header(BadRequest::Truncated);
    let length = frame.try_get_i16().map_err(|_| cut())?;
    let Ok(length) = usize::try_from(length) else { return Ok(None) };
    if length > frame.len() {
        return Err(cut());
    }
    Ok(Some(String::from_utf8_lossy(&frame.split_to(length)).into_owned()))
}

impl Request {
    /// The body as a typed request.
    pub(super) fn decode<T: Decodable>(&self) -> Result<T, Close> {
        T::decode(&mut self.body.clone(), self.version).map_err(|_| Close::Bad {
            key: self.key,
            version: self.version,
            source: BadRequest::Malformed,
        })
    }

    /// A typed response as a frame.
    pub(super) fn encode<T: Encodable + HeaderVersion>(
        &self,
        response: &T,
    ) -> Result<Bytes, Close> {
        self.encode_as(response, self.version)
    }

    /// A typed response in another version than was asked (ApiVersions).
    pub(super) fn encode_as<T: Encodable + HeaderVersion>(
        &self,
        response: &T,
        version: i16,
    ) -> Result<Bytes, Close> {
        let size =
            response.compute_size(version).map_err(|error| Close::Encode(error.to_string()))?;
        let mut frame = BytesMut::with_capacity(size + 9);
        frame.put_i32(0);
        frame.put_i32(self.correlation);
        if T::header_version(version) >= 1 {
            frame.put_u8(0);
        }
        response.encode(&mut frame, version).map_err(|error| Close::Encode(error.to_string()))?;
        Ok(with_size(frame))
    }

    /// The start of a response written by hand: size (to be set by [`with_size`]), correlation, tags.
    pub(super) fn response_head(&self, capacity: usize) -> BytesMut {
        let mut frame = BytesMut::with_capacity(capacity + 9);
        frame.put_i32(0);
        frame.put_i32(self.correlation);
        if self.is_flexible() {
            frame.put_u8(0);
        }
        frame
    }

    pub(super) fn is_flexible(&self) -> bool {
        schema::api(self.key).is_some_and(|api| api.is_flexible(self.version))
    }
}

/// Text for the codec.
pub(super) fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

/// Sets the size of a whole frame.
pub(super) fn with_size(mut frame: BytesMut) -> Bytes {
    let size = (frame.len().saturating_sub(4)) as u32;
    if let Some(head) = frame.first_chunk_mut::<4>() {
        *head = size.to_be_bytes();
    }
    frame.freeze()
}
