//! The state of a request body that the client still sends while the app gets it: see [`super::pump`].

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::engine::exchange::Exchange;
use crate::http1::upload::Upload;
use crate::transport::app_pool::AppStream;

/// A client that sends less than [`BUSY_BYTES`] in this time loses its permit.
pub(super) const BUSY: Duration = Duration::from_millis(100);
pub(super) const BUSY_BYTES: u64 = 16 << 10;
/// Bytes that are passed on without a permit before Outrigger asks for one again.
pub(super) const UNPERMITTED_BYTES: u64 = 64 << 10;

/// The state of a body that the client still sends while the app gets it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streaming {
    /// When the client's time began.
    pub(super) since: Instant,
    /// When the client sent its last bytes, or the app last took some after it had taken none.
    pub(super) heard_at: Instant,
    /// Since when the app takes no bytes.
    pub(super) blocked_since: Option<Instant>,
    /// When the current [`BUSY`] began.
    pub(super) window_began: Instant,
    pub(super) window_bytes: u64,
    /// It had a permit when its streaming began, and there is no response yet.
    pub(super) needs_permit: bool,
    /// Bytes passed on since it lost its permit.
    pub(super) unpermitted: u64,
}

impl Streaming {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            heard_at: now,
            blocked_since: None,
            window_began: now,
            window_bytes: 0,
            needs_permit: false,
            unpermitted: 0,
        }
    }

    pub(super) fn restart_window(&mut self, now: Instant) {
        (self.heard_at, self.window_began, self.window_bytes) = (now, now, 0);
    }
}

impl Upload {
    /// Begins an attempt.
    pub(super) fn begin(&mut self, exchange: &mut Exchange) {
        (self.head_sent, self.is_cut) = (0, false);
        if self.is_kept {
            self.sent = 0;
        }
        let earlier = self.streaming.take();
        if !self.is_whole {
            let now = Instant::now();
            let needs_permit = exchange.permit.is_some() || earlier.is_some_and(|earlier| earlier.needs_permit);
            self.streaming = Some(Streaming { needs_permit, ..Streaming::new(now) });
        }
    }

    /// Writes what there is to write. Ready: the app has got all of it, or takes no more.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, app: &mut AppStream, head: &[u8]) -> Poll<()> {
        while !self.is_cut {
            let (head, body) = (head.get(self.head_sent..).unwrap_or_default(), &self.buffer[self.sent..]);
            let written = match (head, body) {
                ([], []) => break,
                ([], one) | (one, []) => Pin::new(&mut *app).poll_write(cx, one),
                (head, body) => Pin::new(&mut *app).poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)]),
            };
            match ready!(written) {
                Ok(written) if written > 0 => {
                    let of_head = written.min(head.len());
                    self.head_sent += of_head;
                    self.sent += written - of_head;
                    self.unblocked();
                }
                // There may be a response all the same.
                Ok(_) | Err(_) => self.is_cut = true,
            }
        }
        if !self.is_kept {
            self.buffer.clear();
            self.sent = 0;
        }
        Poll::Ready(())
    }

    /// Whether a permit is needed now; if so, whether for the end.
    pub(super) fn wants_permit(&self, has_permit: bool) -> Option<bool> {
        let streaming = self.streaming.as_ref()?;
        let is_wanted = streaming.needs_permit
            && !has_permit
            && !self.is_cut
            && (self.is_whole || streaming.unpermitted >= UNPERMITTED_BYTES);
        is_wanted.then_some(self.is_whole)
    }

    /// Counts bytes that have arrived.
    pub(super) fn count(&mut self, bytes: usize, has_permit: bool) {
        let Some(streaming) = &mut self.streaming else { return };
        streaming.heard_at = Instant::now();
        streaming.window_bytes += bytes as u64;
        streaming.unpermitted = if has_permit { 0 } else { streaming.unpermitted + bytes as u64 };
    }

    pub(super) fn blocked(&mut self) {
        if let Some(streaming) = &mut self.streaming {
            streaming.blocked_since.get_or_insert_with(Instant::now);
        }
    }

    /// The client is not at fault for the time in which the app took nothing.
    pub(super) fn unblocked(&mut self) {
        if let Some(streaming) = &mut self.streaming
            && streaming.blocked_since.take().is_some()
        {
            streaming.restart_window(Instant::now());
        }
    }

    /// The app has all of it: its time begins.
    pub(super) fn end(&mut self, exchange: &mut Exchange, is_answered: bool) {
        if let Some(streaming) = self.streaming.take()
            && !is_answered
        {
            let now = Instant::now();
            exchange.deadline += now - streaming.since;
            exchange.asked_at = now.into_std();
            if let Some(permit) = &mut exchange.permit {
                permit.sent(now.into_std());
            }
        }
    }
}
