//! The live page: server-sent events with the panels that have changed.
//!
//! Panels are rendered once a second for all viewers of a kind, and only while there are some. A viewer gets the latest version
//! of each panel that it does not have: one that reads slowly skips versions, and nothing is queued for it. At most half of the
//! viewers are no operators, so that an operator gets the live page whoever else looks at it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use outrigger_identity::clock;
use serde_json::json;
use tokio::sync::watch;

use crate::control::admin::connections::Place;
use crate::control::admin::sessions::Sessions;
use crate::control::page::panels::{self, Panel};
use crate::control::status::Status;
use crate::control::status::gather::Board;
use crate::engine::state::State;

/// Viewers at a time, if the listener has enough connections.
const MOST_VIEWERS: usize = 16;
/// How often panels are rendered.
const EVERY: Duration = Duration::from_secs(1);
/// If no panel has changed for this long, a comment shows that the stream is alive.
const SILENCE: Duration = Duration::from_secs(15);

/// How many viewers there may be: a quarter of the connections, so that they keep no scrape out.
pub fn most_viewers(connections: usize) -> usize {
    (connections / 4).clamp(1, MOST_VIEWERS)
}

/// A panel, ready to be sent.
#[derive(Debug)]
struct Shown {
    id: &'static str,
    hash: u64,
    event: Bytes,
}

type Rendering = Arc<Vec<Shown>>;

/// The latest renderings, and the number of viewers.
#[derive(Debug)]
pub struct Live {
    /// For those that are no operators, and for operators.
    renderings: [watch::Sender<Rendering>; 2],
    /// The panels of the latest summary, likewise.
    panels: [Mutex<Option<Panels>>; 2],
    viewers: Mutex<Viewers>,
}

/// A summary, and its panels.
type Panels = (Arc<Status>, Arc<Vec<Panel>>);

#[derive(Debug, Default)]
struct Viewers {
    by_address: HashMap<IpAddr, usize>,
    /// How many of them are no operators.
    guests: usize,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            renderings: [(); 2].map(|()| watch::Sender::new(Arc::default())),
            panels: Default::default(),
            viewers: Mutex::default(),
        }
    }
}

impl Live {
    /// Renders the panels while there are viewers.
    pub async fn keep_rendering(self: Arc<Self>, state: Arc<State>, board: Arc<Board>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for (sender, is_operator) in self.renderings.iter().zip([false, true]) {
                if sender.receiver_count() > 0 {
                    let panels = self.panels(&state, &board.status(), is_operator);
                    let shown = panels.iter().map(|panel| {
                        let data = json!({ "id": panel.id, "hash": format!("{:016x}", panel.hash), "html": panel.html.as_str() });
                        Shown { id: panel.id, hash: panel.hash, event: format!("event: panel\ndata: {data}\n\n").into() }
                    });
                    sender.send_replace(Arc::new(shown.collect()));
                }
            }
        }
    }

    /// The panels of a summary. They are rendered once, for all who look at it.
    pub fn panels(&self, state: &State, status: &Arc<Status>, is_operator: bool) -> Arc<Vec<Panel>> {
        // Replaced as a whole.
        let mut latest = self.panels[usize::from(is_operator)].lock().unwrap_or_else(PoisonError::into_inner);
        match latest.as_ref() {
            Some((of, panels)) if Arc::ptr_eq(of, status) => Arc::clone(panels),
            _ => {
                let panels = Arc::new(panels::all(state, status, is_operator));
                *latest = Some((Arc::clone(status), Arc::clone(&panels)));
                panels
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Viewers> {
        // Counts are changed as a whole.
        self.viewers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream of panels; `None` if there are `most` viewers, half as many from this address, or half as many who are no operators. It
    /// ends with the session.
    pub fn feed(
        self: &Arc<Self>,
        place: Arc<Place>,
        most: usize,
        is_operator: bool,
        session: Option<(Arc<Sessions>, String)>,
    ) -> Option<Feed> {
        let mut viewers = self.lock();
        let of_address = viewers.by_address.get(&place.client).copied().unwrap_or_default();
        let half = most.div_ceil(2);
        let is_one_too_many = viewers.by_address.values().sum::<usize>() >= most || of_address >= half;
        if is_one_too_many || (!is_operator && viewers.guests >= half) {
            return None;
        }
        *viewers.by_address.entry(place.client).or_default() += 1;
        viewers.guests += usize::from(!is_operator);
        drop(viewers);
        let renderings = self.renderings[usize::from(is_operator)].subscribe();
        Some(Feed {
            live: Arc::clone(self),
            is_operator,
            place,
            session,
            has_begun: false,
            has: HashMap::new(),
            last: clock::now(),
            next: Box::pin(next(renderings)),
        })
    }
}

type Next = Pin<Box<dyn Future<Output = Option<(watch::Receiver<Rendering>, Rendering)>> + Send>>;

async fn next(mut renderings: watch::Receiver<Rendering>) -> Option<(watch::Receiver<Rendering>, Rendering)> {
    renderings.changed().await.ok()?;
    let latest = Arc::clone(&renderings.borrow_and_update());
    Some((renderings, latest))
}

/// The stream of one viewer.
pub struct Feed {
    live: Arc<Live>,
    is_operator: bool,
    place: Arc<Place>,
    session: Option<(Arc<Sessions>, String)>,
    has_begun: bool,
    /// The version of each panel that was sent.
    has: HashMap<&'static str, u64>,
    last: Instant,
    next: Next,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("has_begun", &self.has_begun).finish_non_exhaustive()
    }
}

impl Feed {
    /// The panels that this viewer does not have.
    fn changed(&mut self, rendering: &Rendering) -> Bytes {
        let mut bytes = BytesMut::new();
        for panel in rendering.iter() {
            if self.has.insert(panel.id, panel.hash) != Some(panel.hash) {
                bytes.extend_from_slice(&panel.event);
            }
        }
        bytes.freeze()
    }
}

impl Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let feed = &mut *self;
        if !std::mem::replace(&mut feed.has_begun, true) {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"retry: 2000\n\n")))));
        }
        loop {
            let Some((renderings, rendering)) = std::task::ready!(feed.next.as_mut().poll(cx)) else {
                return Poll::Ready(None);
            };
            feed.next = Box::pin(next(renderings));
            if feed.session.as_ref().is_some_and(|(sessions, id)| !sessions.is_open(id)) {
                return Poll::Ready(None);
            }
            let mut bytes = feed.changed(&rendering);
            if bytes.is_empty() {
                if clock::since(feed.last) < SILENCE {
                    continue;
                }
                bytes = Bytes::from_static(b"event: alive\ndata: 1\n\n");
            }
            feed.last = clock::now();
            // Asked for more: the client has read what was sent before.
            feed.place.is_read();
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut viewers = self.live.lock();
        viewers.guests -= usize::from(!self.is_operator);
        if let Some(count) = viewers.by_address.get_mut(&self.place.client) {
            *count -= 1;
            if *count == 0 {
                viewers.by_address.remove(&self.place.client);
            }
        }
    }
}
