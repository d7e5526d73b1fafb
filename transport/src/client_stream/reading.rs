//! Reading the current request: its head and its body, and nothing after them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use outrigger_wire::chunks::Chunks;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::ClientStream;

/// Which bytes may be read now.
#[derive(Debug)]
pub(super) enum Current {
    /// No bytes: the next request has not been parsed.
    Between,
    /// The body.
    Body(Body),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    Length(u64),
    Chunked(Chunks),
}

impl Body {
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
        }
    }
}

impl ClientStream {
    /// Reads the next part of the body of [`Self::take_request`], without the framing of its chunks, into `piece`. Returns its
    /// length; 0 is the end of the body.
    ///
    /// # Errors
    /// The socket's error; `UnexpectedEof` when the client closes before the end, `InvalidData` for malformed chunks.
    pub fn poll_payload(&mut self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let Current::Body(mut body) = self.current else { return Poll::Ready(Ok(0)) };
            if body.is_done() {
                return Poll::Ready(Ok(0));
            }
            let mut buf = ReadBuf::new(piece);
            let most = match &body {
                Body::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            ready!(self.poll_upto(most, cx, &mut buf))?;
            let read = buf.filled().len();
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let payload = match &mut body {
                Body::Length(left) => {
                    *left -= read as u64;
                    read
                }
                Body::Chunked(chunks) => {
                    let decoded = chunks.decode(&mut piece[..read]);
                    let (taken, payload) =
                        decoded.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.advice()))?;
                    if taken < read {
                        self.put_back(&piece[taken..read]);
                    }
                    payload
                }
            };
            self.current = Current::Body(body);
            if payload > 0 {
                return Poll::Ready(Ok(payload));
            }
        }
    }

    /// Reads bytes that are not HTTP into `piece`: first those that were read already. Returns their number; 0 is the end.
    ///
    /// # Errors
    /// The socket's error.
    pub fn poll_raw(&mut self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(piece);
        ready!(self.poll_upto(usize::MAX, cx, &mut buf))?;
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// The start of the next request was read, too: puts it back in front of the input.
    fn put_back(&mut self, surplus: &[u8]) {
        let kept = std::mem::replace(&mut self.input, BytesMut::from(surplus));
        self.input.unsplit(kept);
    }

    /// Reads at most `most` bytes: those read ahead first, then from the socket.
    fn poll_upto(&mut self, most: usize, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = most.min(buf.remaining());
        if !self.input.is_empty() {
            let taken = most.min(self.input.len());
            buf.put_slice(&self.input[..taken]);
            self.input.advance(taken);
            return Poll::Ready(Ok(()));
        }
        let Some(socket) = self.socket.as_mut() else { return Poll::Ready(Ok(())) };
        if most == buf.remaining() {
            return Pin::new(socket).poll_read(cx, buf);
        }
        let mut limited = (&mut *buf).limit(most);
        let mut read = std::pin::pin!(socket.read_buf(&mut limited));
        read.as_mut().poll(cx).map_ok(|_| ())
    }
}
