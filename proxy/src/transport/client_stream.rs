//! A client connection as Pingora sees it: one request at a time, and without buffers while idle.
//!
//! Pingora reads all data that arrives, and closes a connection whose client sent its next request early. This stream hands
//! out exactly the head and the body of the current request and keeps the rest for the next one: pipelining works, and bytes
//! after a message can never become part of it. Writes are gathered until Pingora flushes, so a head and a small body take
//! one system call. Both buffers are freed while the connection is idle.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, BytesMut};
use outrigger_wire::chunks::Chunks;
use outrigger_wire::scan::{Framing, Head, Origin};
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType, raw_connect::ProxyDigest,
};
use std::os::fd::AsRawFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// Gathered writes are sent when they reach this; larger ones go out directly.
const GATHER_BYTES: usize = 32 << 10;
/// How many bytes of the next requests are read ahead while the current one is served.
const READ_AHEAD_BYTES: usize = 8 << 10;
/// The largest piece of a body that is read at once while the body is kept.
pub const SMALL_PIECE_BYTES: usize = 16 << 10;
/// The buffer size for the first piece of a head.
const HEAD_BUFFER_BYTES: usize = 2 << 10;
/// How long and how many bytes are read and discarded after a response that came before the end of its request. Without
/// this, a reset could destroy the response before the client has read it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// Which bytes Pingora may read now.
#[derive(Debug)]
enum Current {
    /// No bytes: the next request has not been parsed.
    Between,
    /// The rest of the head, then its body.
    Head { left: usize, body: Body },
    /// The body.
    Body(Body),
}

#[derive(Clone, Copy, Debug)]
enum Body {
    Length(u64),
    Chunked(Chunks),
    /// The client asks to switch protocols and has no response yet: its bytes may belong to a tunnel or to its next request.
    Upgrade,
    /// The protocol was switched, or is not HTTP/1: all bytes belong to the current exchange.
    Tunnel,
}

impl Body {
    fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::Upgrade | Self::Tunnel => false,
        }
    }
}

/// A client's connection that hands out one request at a time; see the module.
#[derive(Debug)]
pub struct ClientStream {
    /// Taken only by `drop` and [`Self::answer_and_close`].
    socket: Option<TcpStream>,
    /// Read, but not handed out yet.
    input: BytesMut,
    /// Written, but not sent yet.
    output: BytesMut,
    current: Current,
    /// Hands out bodies in pieces of at most [`SMALL_PIECE_BYTES`].
    small_pieces: AtomicBool,
    digest: Arc<SocketDigest>,
}

impl ClientStream {
    /// Takes over an accepted socket.
    pub fn new(socket: TcpStream, client: SocketAddr) -> Self {
        let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
        // The address is known, which saves a system call later. Setting it cannot fail, as it is unset.
        let _ = digest.peer_addr.set(Some(client.into()));
        Self {
            socket: Some(socket),
            input: BytesMut::new(),
            output: BytesMut::new(),
            current: Current::Between,
            small_pieces: AtomicBool::new(false),
            digest: Arc::new(digest),
        }
    }

    /// The local and the client's address of this connection.
    pub fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let socket = self.socket.as_ref()?;
        socket.local_addr().ok().zip(socket.peer_addr().ok())
    }

    /// The bytes that were read and belong to no request yet.
    pub fn pending(&self) -> &[u8] {
        &self.input
    }

    /// The memory that [`Self::pending`] takes, in bytes.
    pub fn pending_capacity(&self) -> usize {
        self.input.capacity()
    }

    /// Identifies this connection within the process: the address of its socket digest, which Pingora exposes, too.
    pub fn key(&self) -> usize {
        Arc::as_ptr(&self.digest) as usize
    }

    /// Drops empty lines before a request line, as RFC 9112 section 2.2 allows.
    pub fn skip_empty_lines(&mut self) {
        while self.input.starts_with(b"\r\n") {
            self.input.advance(2);
        }
    }

    /// Reads more into [`Self::pending`]. Returns the number of bytes; 0 is the end of the stream.
    ///
    /// # Errors
    /// The socket's error.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(socket) = self.socket.as_mut() else { return Poll::Ready(Ok(0)) };
        if self.input.capacity() - self.input.len() < HEAD_BUFFER_BYTES / 2 {
            self.input.reserve(HEAD_BUFFER_BYTES);
        }
        let mut read = std::pin::pin!(socket.read_buf(&mut self.input));
        read.as_mut().poll(cx)
    }

    /// Frees both buffers while the connection is idle.
    pub fn rest(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        self.output = BytesMut::new();
    }

    /// Lets Pingora read the request whose head is at the start of [`Self::pending`].
    pub fn begin(&mut self, head: Head) {
        let body = match head.framing {
            Framing::Length(0) if head.is_upgrade => Body::Upgrade,
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunks::default()),
        };
        self.current = Current::Head { left: head.len, body };
    }

    /// Converts an absolute-form target to origin-form, as apps expect it; its host equals the `Host` header.
    #[must_use]
    pub fn drop_origin(&mut self, mut head: Head) -> Head {
        let Origin { start, mut len, lacks_path } = head.origin;
        if len == 0 {
            return head;
        }
        if lacks_path {
            len -= 1;
            self.input[start + len] = b'/';
        }
        self.input.copy_within(..start, len);
        self.input.advance(len);
        head.len -= len;
        head
    }

    /// Removes and returns the head of `len` bytes at the start of [`Self::pending`].
    pub fn take_head(&mut self, len: usize) -> BytesMut {
        if len == self.input.len() { std::mem::take(&mut self.input) } else { self.input.split_to(len) }
    }

    /// Removes and returns the request at the start of [`Self::pending`]: its head, and what has arrived of a body whose length
    /// is declared. [`Self::poll_payload`] reads the rest.
    pub fn take_request(&mut self, head: &Head) -> BytesMut {
        let (body, arrived) = match head.framing {
            Framing::Length(length) => {
                let available = self.input.len() - head.len;
                let arrived = usize::try_from(length).map_or(available, |length| length.min(available));
                (Body::Length(length - arrived as u64), arrived)
            }
            Framing::Chunked => (Body::Chunked(Chunks::default()), 0),
        };
        self.current = Current::Body(body);
        self.take_head(head.len + arrived)
    }

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
                Body::Upgrade | Body::Tunnel => read,
            };
            self.current = Current::Body(body);
            if payload > 0 {
                return Poll::Ready(Ok(payload));
            }
        }
    }

    /// The number of bytes of the current body that have not been read; `None` if it is unknown.
    pub fn unread_body(&self) -> Option<u64> {
        match &self.current {
            Current::Body(Body::Length(left)) => Some(*left),
            _ => None,
        }
    }

    /// The start of the next request was read, too: puts it back in front of the input.
    fn put_back(&mut self, surplus: &[u8]) {
        let kept = std::mem::replace(&mut self.input, BytesMut::from(surplus));
        self.input.unsplit(kept);
    }

    /// The buffer in which a response is gathered; [`Self::poll_send`] sends it.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Sends part of `bytes` directly. The output buffer must be empty.
    ///
    /// # Errors
    /// The socket's error.
    pub fn poll_send_directly(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.socket.as_mut() {
            Some(socket) => Pin::new(socket).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Lets Pingora read everything: the connection speaks HTTP/2.
    pub fn begin_tunnel(&mut self) {
        self.current = Current::Body(Body::Tunnel);
    }

    /// Whether the current request was read to its end, so that another may follow.
    pub fn is_between_requests(&self) -> bool {
        match &self.current {
            Current::Between => true,
            Current::Head { .. } => false,
            Current::Body(body) => body.is_done(),
        }
    }

    /// Limits each read of a body to [`SMALL_PIECE_BYTES`] if `small`. Atomic, because Pingora gives only shared access to
    /// its stream.
    pub fn read_small_pieces(&self, small: bool) {
        self.small_pieces.store(small, Ordering::Relaxed);
    }

    /// Ends the current request; the next read waits for another one.
    pub fn finish_request(&mut self) {
        self.current = Current::Between;
        self.small_pieces.store(false, Ordering::Relaxed);
    }

    /// Sends `bytes` and closes the connection; for a moment, reads and discards what the client still sends.
    pub async fn answer_and_close(mut self, bytes: &[u8]) {
        let Some(mut socket) = self.socket.take() else { return };
        // Free the buffers first: the client may be slow.
        drop(self);
        let send = async {
            socket.write_all(bytes).await?;
            socket.flush().await
        };
        if matches!(tokio::time::timeout(LINGER, send).await, Ok(Ok(()))) {
            linger(socket).await;
        }
    }

    fn poll_body(&mut self, mut body: Body, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = match &mut body {
            Body::Length(left) => self.poll_length(left, cx, buf),
            Body::Chunked(chunks) => self.poll_chunked(chunks, cx, buf),
            Body::Upgrade => self.poll_gone(cx),
            Body::Tunnel => self.poll_upto(usize::MAX, cx, buf),
        };
        self.current = Current::Body(body);
        result
    }

    fn poll_length(&mut self, left: &mut u64, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.poll_upto(usize::try_from(*left).unwrap_or(usize::MAX), cx, buf))?;
        *left -= (buf.filled().len() - before) as u64;
        Poll::Ready(Ok(()))
    }

    fn poll_chunked(
        &mut self,
        chunks: &mut Chunks,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.poll_upto(usize::MAX, cx, buf))?;
        let fresh = &buf.filled()[before..];
        let taken = chunks.feed(fresh).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.advice()))?;
        if taken < fresh.len() {
            self.put_back(&fresh[taken..]);
            buf.set_filled(before + taken);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads at most `most` bytes: those read ahead first, then from the socket.
    fn poll_upto(&mut self, most: usize, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = if self.small_pieces.load(Ordering::Relaxed) { most.min(SMALL_PIECE_BYTES) } else { most };
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

    /// Ready when the client has closed the connection. Data that it sends meanwhile is kept as its next request.
    ///
    /// # Errors
    /// The socket's error.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.input.len() >= READ_AHEAD_BYTES {
                // The response's progress wakes the task; further bytes of the client can wait.
                return Poll::Pending;
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Pingora writes a head in one piece, so its first line shows whether the protocol is switched.
    fn see_answer_to_upgrade(&mut self, written: &[u8]) {
        match written.get(9..12) {
            Some(b"101") => self.current = Current::Body(Body::Tunnel),
            Some([b'1', ..]) | None => {}
            Some(_) => self.current = Current::Body(Body::Length(0)),
        }
    }

    /// Sends the gathered output.
    ///
    /// # Errors
    /// The socket's error.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let Some(socket) = self.socket.as_mut() else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            let sent = ready!(Pin::new(socket).poll_write(cx, &self.output))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(sent);
        }
        self.output.clear();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let unread = matches!(&self.current, Current::Body(Body::Length(_) | Body::Chunked(_)) | Current::Head { .. })
            && !self.is_between_requests();
        if unread
            && let Some(socket) = self.socket.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(linger(socket));
        }
    }
}

/// Reads and discards what the client still sends, so that closing does not reset the connection before the client has read
/// the response.
async fn linger(mut socket: TcpStream) {
    let drain = async {
        socket.shutdown().await?;
        let mut sink = [0_u8; 4096];
        let mut total = 0;
        while total < LINGER_BYTES {
            match socket.read(&mut sink).await? {
                0 => break,
                n => total += n,
            }
        }
        io::Result::Ok(())
    };
    // The connection is closed in any case.
    let _ = tokio::time::timeout(LINGER, drain).await;
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.current {
            Current::Head { left, body } => {
                let taken = (*left).min(buf.remaining()).min(this.input.len());
                buf.put_slice(&this.input[..taken]);
                this.input.advance(taken);
                *left -= taken;
                if *left == 0 {
                    this.current = Current::Body(*body);
                }
                Poll::Ready(Ok(()))
            }
            Current::Body(body) if !body.is_done() => {
                let body = *body;
                this.poll_body(body, cx, buf)
            }
            Current::Body(_) | Current::Between => this.poll_gone(cx),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if matches!(this.current, Current::Body(Body::Upgrade)) {
            this.see_answer_to_upgrade(bytes);
        }
        if this.output.len() + bytes.len() > GATHER_BYTES {
            ready!(this.poll_send(cx))?;
            if bytes.len() > GATHER_BYTES {
                let Some(socket) = this.socket.as_mut() else {
                    return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                };
                return Pin::new(socket).poll_write(cx, bytes);
            }
        }
        this.output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        match this.socket.as_mut() {
            Some(socket) => Pin::new(socket).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        // The connection ends either way; there is no caller to handle the error.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Ssl for ClientStream {}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

/// Peeking is not supported, so Pingora accepts h2c without waiting for 24 bytes.
impl Peek for ClientStream {}
