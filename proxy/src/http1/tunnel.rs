//! A tunnel: the connection of a client and one of the app or a peer after a response with 101. Its bytes are not HTTP.
//!
//! ```text
//!            head                    last byte of the body and 101              the end of both directions
//!             |  an ordinary request  |  app.stream_timeout without a byte, and    |
//!             |  with all its limits  |  client.write_timeout for a slow client    |
//! ```
//!
//! Outrigger passes on bytes, the end of each direction, and resets, and writes nothing of its own. A direction holds memory only
//! while its receiver takes less than has arrived; then nothing more is read for it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::engine::exchange::Exchange;
use crate::engine::metrics::StreamKind;
use crate::engine::record;
use crate::engine::stages::audit;
use crate::http1::buffers::recycle;
use crate::http1::upload::PIECE;
use crate::http1::{Broken, ClientSide, Lane};
use crate::transport::app_pool::AppStream;
use crate::transport::client_stream::ClientStream;
use crate::transport::timer::Timer;

impl Lane<'_> {
    /// Passes on a 101, whose head is in the client's output, and then what both sides send until the tunnel ends. `input` has
    /// the bytes that followed the head. An error comes before the 101.
    pub(super) async fn switch_protocols(
        &mut self,
        mut app: AppStream,
        input: BytesMut,
        exchange: &mut Exchange,
    ) -> Result<(), Broken> {
        self.finish_upload(&mut app, exchange).await?;
        exchange.status = 101;
        exchange.answered_by_app = true;
        record::head(self.state, exchange, true);
        audit::before_response(self.state, exchange).await.map_err(Broken::Refused)?;
        record::first_byte(exchange);
        exchange.stream = Some(StreamKind::Upgrade);
        self.closes = true;
        self.stream.output().put_slice(&input);
        self.sent += input.len() as u64;
        recycle(input);
        self.send_gathered(exchange).await?;
        let ClientSide::Http1(client) = &mut self.stream else { return Err(Broken::ClientLeft) };
        client.rest();
        let limits = TunnelLimits {
            silence: exchange.rules.config.app.stream_timeout,
            stall: exchange.rules.config.client.write_timeout,
        };
        let mut tunnel = Tunnel::new(&mut **client, &mut app, limits);
        let is_orderly = poll_fn(|cx| tunnel.poll(cx, self.timer)).await;
        self.sent += tunnel.to_client.sent;
        self.received += tunnel.to_app.sent;
        if !is_orderly {
            app.reset();
            client.reset();
        }
        Ok(())
    }
}

/// How long a tunnel lasts although nothing is passed on.
#[derive(Clone, Copy, Debug)]
struct TunnelLimits {
    /// Neither side sends or takes a byte.
    silence: Duration,
    /// The client takes none of the bytes that wait for it.
    stall: Duration,
}

/// Two connections, each of which gets what the other one sends.
struct Tunnel<'a, C, A> {
    client: &'a mut C,
    app: &'a mut A,
    to_client: Direction,
    to_app: Direction,
    limits: TunnelLimits,
    /// When a byte was last read or written.
    active_at: Instant,
    /// When the client last took bytes, or began to have some waiting for it.
    taken_at: Instant,
}

impl<'a, C: Side, A: Side> Tunnel<'a, C, A> {
    fn new(client: &'a mut C, app: &'a mut A, limits: TunnelLimits) -> Self {
        let now = Instant::now();
        let (to_client, to_app) = (Direction::default(), Direction::default());
        Self { client, app, to_client, to_app, limits, active_at: now, taken_at: now }
    }

    /// Ready at the tunnel's end: whether it is an orderly one, by which no bytes are lost.
    fn poll(&mut self, cx: &mut Context<'_>, timer: &mut Timer) -> Poll<bool> {
        let (was_waiting, sent_before) = (self.to_client.is_waiting(), self.to_client.sent);
        let mut is_active = false;
        loop {
            // One piece of each by turns, so that a busy direction does not hold up the other one.
            let to_client = self.to_client.poll_pass(cx, self.app, self.client);
            let to_app = self.to_app.poll_pass(cx, self.client, self.app);
            if matches!(to_client, Poll::Ready(Err(_))) || matches!(to_app, Poll::Ready(Err(_))) {
                return Poll::Ready(false);
            }
            if self.to_client.is_over && self.to_app.is_over {
                return Poll::Ready(!self.to_client.is_broken && !self.to_app.is_broken);
            }
            if to_client.is_pending() && to_app.is_pending() {
                break;
            }
            is_active = true;
        }
        if is_active {
            self.active_at = Instant::now();
            if !was_waiting || self.to_client.sent > sent_before {
                self.taken_at = self.active_at;
            }
        }
        let silent_at = self.active_at + self.limits.silence;
        let ends_at = match self.to_client.is_waiting() {
            true => silent_at.min(self.taken_at + self.limits.stall),
            false => silent_at,
        };
        ready!(timer.poll(cx, ends_at));
        Poll::Ready(!self.to_client.is_waiting() && !self.to_app.is_waiting())
    }
}

/// One direction of a tunnel.
#[derive(Debug, Default)]
struct Direction {
    /// Read, but not taken by the receiver yet.
    unsent: BytesMut,
    /// Bytes that the receiver took.
    sent: u64,
    /// The sender has sent all.
    has_ended: bool,
    /// The receiver has all, or takes no more.
    is_over: bool,
    /// The receiver takes no more.
    is_broken: bool,
}

impl Direction {
    fn is_waiting(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Passes on a piece, or the end. A receiver that takes no more only ends this direction: it may have sent its last bytes
    /// before.
    ///
    /// # Errors
    /// That of the sender, whose connection is broken in both directions.
    fn poll_pass(&mut self, cx: &mut Context<'_>, from: &mut impl Side, to: &mut impl Side) -> Poll<io::Result<()>> {
        if self.is_over {
            return Poll::Pending;
        }
        if self.is_waiting() {
            match ready!(to.poll_send(cx, &self.unsent)) {
                Ok(taken) if taken > 0 => {
                    self.sent += taken as u64;
                    self.unsent.advance(taken);
                }
                Ok(_) | Err(_) => self.breaks(),
            }
            if self.unsent.is_empty() {
                self.unsent = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        if self.has_ended {
            let finished = ready!(to.poll_finish(cx));
            (self.is_over, self.is_broken) = (true, finished.is_err());
            return Poll::Ready(Ok(()));
        }
        PIECE.with_borrow_mut(|piece| {
            let read = ready!(from.poll_receive(cx, piece))?;
            if read == 0 {
                self.has_ended = true;
                return Poll::Ready(Ok(()));
            }
            match to.poll_send(cx, &piece[..read]) {
                Poll::Ready(Ok(taken)) if taken > 0 => self.keep(&piece[..read], taken),
                Poll::Ready(Ok(_) | Err(_)) => self.breaks(),
                Poll::Pending => self.keep(&piece[..read], 0),
            }
            Poll::Ready(Ok(()))
        })
    }

    fn keep(&mut self, piece: &[u8], taken: usize) {
        self.sent += taken as u64;
        self.unsent.extend_from_slice(&piece[taken..]);
    }

    fn breaks(&mut self) {
        self.unsent.clear();
        (self.is_over, self.is_broken) = (true, true);
    }
}

/// A connection at one end of a tunnel.
trait Side {
    /// Reads into `piece`; 0 is the end of what this side sends.
    fn poll_receive(&mut self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Writes a part of `bytes`; returns its length.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    /// Tells this side that it gets no more bytes.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Side for ClientStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_raw(cx, piece)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send_directly(cx, bytes)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ClientStream::poll_finish(self, cx)
    }
}

impl Side for AppStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(piece);
        ready!(Pin::new(self).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
