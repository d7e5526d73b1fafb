//! The client's side of a request: a connection of HTTP/1, or a stream of HTTP/2.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use bytes::BytesMut;
use http::Version;
use outrigger_wire::scan::Head;

use crate::transport::body_memory::BodyShare;
use crate::transport::client_stream::ClientStream;
use crate::transport::http2::Http2Stream;

/// The client's side of a request. The response is written as HTTP/1.1 in either case; HTTP/2 has no chunks.
#[derive(Debug)]
pub enum ClientSide<'a> {
    /// A connection that serves one request at a time.
    Http1(&'a mut ClientStream),
    /// One of the streams of a connection.
    Http2 {
        /// The stream.
        stream: &'a mut Http2Stream,
        /// The addresses of its connection: the local one, and the client's.
        addresses: Option<(SocketAddr, SocketAddr)>,
    },
}

impl ClientSide<'_> {
    /// The request's protocol.
    pub(super) fn version(&self, head: &Head) -> Version {
        match self {
            Self::Http1(_) if head.is_http10 => Version::HTTP_10,
            Self::Http1(_) => Version::HTTP_11,
            Self::Http2 { .. } => Version::HTTP_2,
        }
    }

    /// The local and the client's address of its connection.
    pub(super) fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        match self {
            Self::Http1(stream) => stream.addresses(),
            Self::Http2 { addresses, .. } => *addresses,
        }
    }

    /// Removes and returns the head of a request without a body.
    pub(super) fn take_head(&mut self, head: &Head) -> BytesMut {
        match self {
            Self::Http1(stream) => stream.take_head(head.len),
            Self::Http2 { stream, .. } => stream.take_head(head),
        }
    }

    /// Removes and returns a request's head, and what has arrived of a body whose length is declared.
    pub(super) fn take_request(&mut self, head: &Head) -> BytesMut {
        match self {
            Self::Http1(stream) => stream.take_request(head),
            Self::Http2 { stream, .. } => stream.take_head(head),
        }
    }

    /// Accounts for what arrives of the request's body before it is read, which HTTP/1 leaves to the kernel: with a share of the
    /// memory for bodies, `most` in total.
    pub(super) fn account(&mut self, share: impl FnOnce() -> BodyShare, most: usize) {
        if let Self::Http2 { stream, .. } = self {
            stream.account(share(), most);
        }
    }

    /// Nobody reads the rest of the request's body. HTTP/1 may have to, see [`Self::needs_drain`].
    pub(super) fn stop_reading(&mut self) {
        if let Self::Http2 { stream, .. } = self {
            stream.stop_reading();
        }
    }

    /// Reads a part of the request's body, without framing; 0 is its end.
    ///
    /// # Errors
    /// The client has disconnected; `InvalidData` for malformed chunks; `QuotaExceeded` if there is no memory for it.
    pub(super) fn poll_payload(&mut self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Http1(stream) => stream.poll_payload(cx, piece),
            Self::Http2 { stream, .. } => stream.poll_payload(cx, piece),
        }
    }

    /// Whether the request was read to its end.
    pub(super) fn is_between_requests(&self) -> bool {
        match self {
            Self::Http1(stream) => stream.is_between_requests(),
            Self::Http2 { stream, .. } => stream.is_read(),
        }
    }

    /// The number of bytes of the request's body that have not been read; `None` if it is unknown.
    pub(super) fn unread_body(&self) -> Option<u64> {
        match self {
            Self::Http1(stream) => stream.unread_body(),
            Self::Http2 { stream, .. } => stream.unread_body(),
        }
    }

    /// Whether the rest of a rejected request's body must be read, so that the connection can serve another request.
    pub(super) fn needs_drain(&self) -> bool {
        matches!(self, Self::Http1(_))
    }

    /// Ready when the client has closed its side, or with an error when it is gone.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Http1(stream) => stream.poll_gone(cx),
            Self::Http2 { stream, .. } => stream.poll_gone(cx),
        }
    }

    /// Ready when the client has reset the request while its body is not read. HTTP/1 does not show that.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http1(_) => Poll::Pending,
            Self::Http2 { stream, .. } => stream.poll_gone(cx).map(drop),
        }
    }

    /// The buffer in which a response is gathered; [`Self::poll_send`] sends it.
    pub(super) fn output(&mut self) -> &mut BytesMut {
        match self {
            Self::Http1(stream) => stream.output(),
            Self::Http2 { stream, .. } => stream.output(),
        }
    }

    /// Sends the gathered output.
    ///
    /// # Errors
    /// The client has disconnected.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Http1(stream) => stream.poll_send(cx),
            Self::Http2 { stream, .. } => stream.poll_send(cx),
        }
    }

    /// Sends part of `bytes` directly. The output buffer must be empty.
    ///
    /// # Errors
    /// The client has disconnected.
    pub(super) fn poll_send_directly(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Http1(stream) => stream.poll_send_directly(cx, bytes),
            Self::Http2 { stream, .. } => stream.poll_send_directly(cx, bytes),
        }
    }

    /// Makes closing the connection reset it. A stream that is not complete is reset anyway.
    pub(super) fn reset(&mut self) {
        if let Self::Http1(stream) = self {
            stream.reset();
            // Otherwise the connection would first end in order, to read the rest of the request's body.
            stream.finish_request();
        }
    }

    /// The response is complete.
    pub(super) fn complete(&mut self) {
        if let Self::Http2 { stream, .. } = self {
            stream.complete();
        }
    }

    /// The next request on the connection may follow.
    pub(super) fn finish_request(&mut self) {
        if let Self::Http1(stream) = self {
            stream.finish_request();
        }
    }
}
