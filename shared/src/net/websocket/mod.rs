//! MQTT over WebSocket (section 6): a stream of bytes like any other, whatever frames carry it.
//!
//! Nothing is buffered: frames are decoded in the reader's own buffer and written as a header beside the writer's bytes,
//! so a peer can make us hold nothing but a control frame. Only binary frames count; a text frame ends the connection.
//! Change here: how frames map to reads and writes. Not here: what is legal (`frame`, `upgrade`).

mod frame;
mod upgrade;

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::frame::{Answer, Decoder};
pub use self::upgrade::UpgradeError;

/// Bytes read at once.
const READ: usize = 16 * 1024;
/// Pieces written at once, with their header.
const PIECES: usize = 16;
/// Bytes of control frames that may wait for a peer that does not read.
const WAITING: usize = 1_024;

/// A WebSocket that carries MQTT. Read and written by one task.
#[derive(Debug)]
pub struct WebSocket<S> {
    inner: S,
    decoder: Decoder,
    /// Control frames to be written before anything else.
    control: Vec<u8>,
    /// Rest of the header of the frame that is being written.
    header: ([u8; 10], usize, usize),
    /// Bytes of the frame that are announced and not written.
    announced: usize,
    /// We have said close.
    closed: bool,
    failed: bool,
}

/// Waits for the HTTP request of a WebSocket and answers it.
pub async fn accept<S>(mut stream: S, origins: &[String]) -> Result<WebSocket<S>, UpgradeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    upgrade::upgrade(&mut stream, origins).await?;
    Ok(WebSocket::new(stream))
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    fn new(inner: S) -> Self {
        Self {
            inner,
            decoder: Decoder::default(),
            control: Vec::new(),
            header: ([0; 10], 0, 0),
            announced: 0,
            closed: false,
            failed: false,
        }
    }

    fn answer(&mut self, answers: &[Answer]) {
        for answer in answers {
            let close = matches!(answer, Answer::Close(_));
            if !self.closed && (close || self.control.len() < WAITING) {
                self.control.extend(frame::control(answer));
                self.closed |= close;
            }
        }
    }

    /// Writes control frames, unless they would fall into a frame that is being written.
    fn poll_control(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.control.is_empty() && !self.is_in_frame() {
            let written = ready!(pin!(&mut self.inner).poll_write(context, &self.control))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.control.drain(..written);
        }
        if self.control.is_empty() {
            self.control = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    fn is_in_frame(&self) -> bool {
        self.announced > 0 || self.header.1 < self.header.2
    }

    /// Writes some of `pieces`, in the frame that is under way or in a new one for all of them.
    fn poll_pieces(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_control(context))?;
        let length = pieces.iter().take(PIECES).map(|piece| piece.len()).sum();
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        if !self.is_in_frame() {
            if self.closed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let (header, bytes) = frame::binary(length);
            self.header = (header, 0, bytes);
            self.announced = length;
        }
        loop {
            let (header, from, to) = &self.header;
            let header = header.get(*from..*to).unwrap_or_default();
            let mut slices = [IoSlice::new(&[]); PIECES + 1];
            let mut left = self.announced;
            let mut used = 0;
            let fitting = pieces.iter().take(PIECES).map_while(|piece| {
                let part = piece.get(..left.min(piece.len())).unwrap_or_default();
                left -= part.len();
                (!part.is_empty() || left > 0).then_some(part)
            });
            for (slot, part) in slices.iter_mut().zip(std::iter::once(header).chain(fitting)) {
                *slot = IoSlice::new(part);
                used += 1;
            }
            let slices = slices.get(..used).unwrap_or_default();
            let written = ready!(pin!(&mut self.inner).poll_write_vectored(context, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_header = written.min(header.len());
            self.header.1 += of_header;
            let of_pieces = written - of_header;
            self.announced -= of_pieces;
            if of_pieces > 0 {
                return Poll::Ready(Ok(of_pieces));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.failed || this.decoder.is_closed() || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let room = buffer.initialize_unfilled_to(READ.min(buffer.remaining()));
            let mut raw = ReadBuf::new(room);
            ready!(pin!(&mut this.inner).poll_read(context, &mut raw))?;
            let bytes = raw.filled_mut();
            if bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let mut answers = Vec::new();
            let outcome = this.decoder.decode(bytes, &mut answers);
            if let Err(fault) = outcome {
                answers.push(Answer::Close(fault.code()));
                this.failed = true;
            }
            if !answers.is_empty() {
                this.answer(&answers);
                // What cannot be written now goes out with the next write.
                if let Poll::Ready(Err(error)) = this.poll_control(context) {
                    return Poll::Ready(Err(error));
                }
                let _ = pin!(&mut this.inner).poll_flush(context);
            }
            let payload =
                outcome.map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
            if payload > 0 {
                buffer.advance(payload);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_pieces(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_pieces(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_control(context))?;
        pin!(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            this.answer(&[Answer::Close(1000)]);
        }
        ready!(this.poll_control(context))?;
        ready!(pin!(&mut this.inner).poll_flush(context))?;
        pin!(&mut this.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
