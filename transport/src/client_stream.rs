//! A client's connection: one request at a time, and without buffers while idle.
//!
//! It hands out exactly the head and the body of the current request and keeps the rest for the next one: pipelining works, and
//! bytes after a message can never become part of it. Writes are gathered, so a head and a small body take one system call. Both
//! buffers are freed while the connection is idle.

mod reading;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use outrigger_wire::chunks::Chunks;
use outrigger_wire::scan::{Framing, Head, Origin};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use self::reading::{Body, Current};

/// How many bytes of the next requests are read ahead while the current one is served.
const READ_AHEAD_BYTES: usize = 8 << 10;
/// The buffer size for the first piece of a head.
const HEAD_BUFFER_BYTES: usize = 2 << 10;
/// How long and how many bytes are read and discarded after a response that came before the end of its request. Without
/// this, a reset could destroy the response before the client has read it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

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
}

impl ClientStream {
    /// Takes over an accepted socket.
    pub fn new(socket: TcpStream) -> Self {
        Self { socket: Some(socket), input: BytesMut::new(), output: BytesMut::new(), current: Current::Between }
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

    /// [`Self::pending`], to take frames of HTTP/2 from.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// The memory that [`Self::pending`] takes, in bytes.
    pub fn pending_capacity(&self) -> usize {
        self.input.capacity()
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
        self.poll_fill_by(cx, HEAD_BUFFER_BYTES)
    }

    /// The same with room for about `bytes`.
    ///
    /// # Errors
    /// The socket's error.
    pub fn poll_fill_by(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<usize>> {
        let Some(socket) = self.socket.as_mut() else { return Poll::Ready(Ok(0)) };
        if self.input.capacity() - self.input.len() < bytes / 2 {
            self.input.reserve(bytes);
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

    /// Converts an absolute-form target to origin-form, as apps expect it; its host equals the `Host` header, or becomes it.
    #[must_use]
    pub fn drop_origin(&mut self, mut head: Head) -> Head {
        let Origin { start, mut len, lacks_path, lacks_host } = head.origin;
        if len == 0 {
            return head;
        }
        let host = self.input[start + len - lacks_host..start + len].to_vec();
        if lacks_path {
            len -= 1;
            self.input[start + len] = b'/';
        }
        self.input.copy_within(..start, len);
        self.input.advance(len);
        head.len -= len;
        if !host.is_empty() {
            head.len += self.add_host(&host);
        }
        head
    }

    /// Adds a `Host` after the request line; returns its length.
    #[cold]
    fn add_host(&mut self, host: &[u8]) -> usize {
        let line = memchr::memchr(b'\n', &self.input).map_or(0, |end| end + 1);
        let rest = self.input.split_off(line);
        for part in [b"Host: ", host, b"\r\n", &rest] {
            self.input.extend_from_slice(part);
        }
        b"Host: \r\n".len() + host.len()
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

    /// The number of bytes of the current body that have not been read; `None` if it is unknown.
    pub fn unread_body(&self) -> Option<u64> {
        match &self.current {
            Current::Body(Body::Length(left)) => Some(*left),
            _ => None,
        }
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

    /// Ends the direction to the client: no more bytes follow those that were sent.
    ///
    /// # Errors
    /// The socket's error.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.as_mut().map_or(Poll::Ready(Ok(())), |socket| Pin::new(socket).poll_shutdown(cx))
    }

    /// Makes closing the connection reset it.
    pub fn reset(&self) {
        if let Some(socket) = &self.socket {
            // Without it, the connection ends in order.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// Whether the current request was read to its end, so that another may follow.
    pub fn is_between_requests(&self) -> bool {
        match &self.current {
            Current::Between => true,
            Current::Body(body) => body.is_done(),
        }
    }

    /// Ends the current request; the next read waits for another one.
    pub fn finish_request(&mut self) {
        self.current = Current::Between;
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
        let unread =
            matches!(&self.current, Current::Body(Body::Length(_) | Body::Chunked(_))) && !self.is_between_requests();
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
        let mut total = 0;
        while total < LINGER_BYTES {
            socket.readable().await?;
            match discard(&socket) {
                Ok(0) => break,
                Ok(n) => total += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        io::Result::Ok(())
    };
    // The connection is closed in any case.
    let _ = tokio::time::timeout(LINGER, drain).await;
}

/// Reads into a buffer that is not part of the task.
fn discard(socket: &TcpStream) -> io::Result<usize> {
    socket.try_read(&mut [0; 4096])
}
