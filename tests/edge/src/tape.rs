//! A request's body: forwarded while it arrives, and buffered as far as it may be needed again.
//!
//! Source: docs:networking/dynamic-request-routing.html.markerb, docs:monitoring/error-codes.html.md PA01 (facts: 2.3).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::poll_fn;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::BoxError;

/// The body as it arrives from the client. Only its latest [`Playback`] continues.
#[derive(Debug, Clone)]
pub(crate) struct Tape(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    incoming: Option<Incoming>,
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    most_kept: usize,
    has_overflowed: bool,
    total: u64,
    most: Option<u64>,
    hint: SizeHint,
    playback: u32,
}

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapeError {
    #[error("the body is larger than the edge takes")]
    TooLarge,
    #[error("another attempt has taken over")]
    Superseded,
}

impl Tape {
    /// Keeps up to `most_kept` bytes; a body of more than `most` is an error.
    pub(crate) fn new(incoming: Incoming, most_kept: usize, most: Option<u64>) -> Self {
        let hint = incoming.size_hint();
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        let has_overflowed = hint.lower() > most_kept as u64;
        let kept = VecDeque::new();
        let inner =
            Inner { incoming, kept, kept_bytes: 0, most_kept, has_overflowed, total: 0, most, hint, playback: 0 };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// The body from its beginning, or `None` if that is no longer kept. Earlier playbacks end with an error: only one task at
    /// a time can be woken when more arrives.
    pub(crate) fn play(&self) -> Option<Playback> {
        if !self.can_play() {
            return None;
        }
        let mut inner = self.lock();
        inner.playback += 1;
        Some(Playback { tape: self.clone(), number: inner.playback, at: 0 })
    }

    /// Whether the body can be read from its beginning. True, for any length, until the first byte arrives.
    pub(crate) fn can_play(&self) -> bool {
        let inner = self.lock();
        !inner.has_overflowed || inner.total == 0
    }

    /// Reads the rest of the body; true if all of it is kept. Earlier playbacks end now.
    pub(crate) async fn keep_all(&self) -> bool {
        if self.lock().has_overflowed {
            return false;
        }
        let Some(mut rest) = self.play() else { return false };
        while let Some(frame) = rest.frame().await {
            if frame.is_err() || self.lock().has_overflowed {
                return false;
            }
        }
        !self.lock().has_overflowed
    }

    /// Reads the rest of the client's body, up to a limit, so that the client reads the response instead of a reset.
    pub(crate) async fn drain(&self, most: u64) {
        self.lock().playback += 1;
        let stop = self.lock().total.saturating_add(most);
        let next = || poll_fn(|cx| self.lock().poll_incoming(cx));
        while let Some(Ok(_)) = next().await {
            if self.lock().total >= stop {
                return;
            }
        }
    }

    /// Whether the body has arrived completely.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Whether more has arrived than the edge accepts.
    pub(crate) fn is_too_large(&self) -> bool {
        let inner = self.lock();
        inner.most.is_some_and(|most| inner.total.max(inner.hint.lower()) > most)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        loop {
            let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
            match std::task::ready!(Pin::new(incoming).poll_frame(cx)) {
                None => self.incoming = None,
                Some(Err(e)) => {
                    self.incoming = None;
                    self.has_overflowed = true;
                    return Poll::Ready(Some(Err(e.into())));
                }
                Some(Ok(frame)) => {
                    // Trailers are dropped.
                    let Ok(data) = frame.into_data() else { continue };
                    self.total += data.len() as u64;
                    if self.most.is_some_and(|most| self.total > most) {
                        self.has_overflowed = true;
                        return Poll::Ready(Some(Err(TapeError::TooLarge.into())));
                    }
                    self.keep(&data);
                    return Poll::Ready(Some(Ok(data)));
                }
            }
        }
    }

    fn keep(&mut self, data: &Bytes) {
        self.has_overflowed |= self.kept_bytes + data.len() > self.most_kept;
        if self.has_overflowed {
            self.kept = VecDeque::new();
        } else {
            self.kept_bytes += data.len();
            self.kept.push_back(data.clone());
        }
    }
}

/// A request's body on its way to one Machine.
#[derive(Debug)]
pub(crate) struct Playback {
    tape: Tape,
    number: u32,
    at: usize,
}

impl Body for Playback {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let tape = self.tape.clone();
        let mut inner = tape.lock();
        if inner.playback != self.number {
            return Poll::Ready(Some(Err(TapeError::Superseded.into())));
        }
        if let Some(kept) = inner.kept.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        let next = std::task::ready!(inner.poll_incoming(cx));
        self.at += 1;
        Poll::Ready(next.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        let inner = self.tape.lock();
        inner.incoming.is_none() && (inner.has_overflowed || self.at >= inner.kept.len())
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.tape.lock();
        // Only a body that is known as a whole has a length; hyper asks before the first piece.
        if self.at == 0 { inner.hint } else { SizeHint::default() }
    }
}
