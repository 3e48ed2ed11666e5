//! Bytes on their way to one socket: small ones copied together, large payloads by reference, all in one vectored write.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

/// Payloads from this size on are not copied: below it, copying costs less than two more slices in the system call.
pub(super) const SHARED_FROM: usize = 2_048;

/// In: packets ([`Output::tail`], [`Output::share`]). Out: the `Buf` that is written; call [`Output::seal`] first.
#[derive(Debug, Default)]
pub struct Output {
    sealed: VecDeque<Bytes>,
    sealed_bytes: usize,
    tail: BytesMut,
}

impl Output {
    /// Continues with a buffer made before.
    pub fn with_buffer(buffer: BytesMut) -> Self {
        Self { tail: buffer, ..Self::default() }
    }

    /// Where packets are appended.
    pub fn tail(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Appends bytes that others hold, too.
    pub fn share(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARED_FROM {
            self.tail.extend_from_slice(bytes);
            return;
        }
        self.seal();
        self.sealed_bytes += bytes.len();
        self.sealed.push_back(bytes.clone());
    }

    /// Makes all that was appended part of the `Buf`.
    pub fn seal(&mut self) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.sealed_bytes += tail.len();
            self.sealed.push_back(tail);
        }
    }

    /// Bytes held, sealed or not.
    pub fn len(&self) -> usize {
        self.sealed_bytes + self.tail.len()
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The empty buffer, for the next [`Output::with_buffer`].
    pub fn into_buffer(self) -> BytesMut {
        self.tail
    }
}

impl Buf for Output {
    fn remaining(&self) -> usize {
        self.sealed_bytes
    }

    fn chunk(&self) -> &[u8] {
        self.sealed.front().map_or(&[], |bytes| bytes.as_ref())
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(&self.sealed) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.sealed_bytes, "advanced past the end");
        self.sealed_bytes -= count;
        while count > 0 {
            let Some(front) = self.sealed.front_mut() else { return };
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.sealed.pop_front();
        }
    }
}
