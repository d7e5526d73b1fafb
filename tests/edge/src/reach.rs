//! Gets a response from a Machine: choosing, waiting, starting, connecting, and trying another.
//!
//! Only a failed connection sends a request to another Machine, up to 90 times, then PR03. An exchange that was begun and broke
//! off is PU02. Source: docs:monitoring/error-codes.html.md (facts: 2.3, 7).

use std::sync::Arc;

use http::{HeaderMap, Method, Request, Uri, Version};
use tokio::time::{Instant, sleep_until};

use crate::code::Code;
use crate::headers::{self, PREFERRED_UNAVAILABLE};
use crate::pick::{Pick, Slot, Tries};
use crate::routing::Wish;
use crate::settings::RetryBegun;
use crate::shared::Shared;
use crate::tape::{Playback, Tape};
use crate::upstream::{self, Failed, Reached};

/// A request as sent to Machines.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) fields: HeaderMap,
    pub(crate) tape: Tape,
}

impl Outgoing {
    /// `None` if the body is no longer available from its beginning.
    fn request(&self) -> Option<Request<Playback>> {
        let mut request = Request::new(self.tape.play()?);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = self.fields.clone();
        Some(request)
    }

    fn may_begin_again(&self, rule: RetryBegun) -> bool {
        match rule {
            RetryBegun::None => false,
            RetryBegun::Idempotent => self.method.is_idempotent(),
            RetryBegun::All => true,
        }
    }
}

/// Why no Machine responded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreached {
    pub(crate) code: Code,
    /// The replay's own `timeout` has passed.
    pub(crate) is_timeout: bool,
}

impl From<Code> for Unreached {
    fn from(code: Code) -> Self {
        Self { code, is_timeout: false }
    }
}

/// The search for a Machine for one request.
pub(crate) struct Search<'a> {
    shared: &'a Arc<Shared>,
    /// No new attempt starts after this; one in progress continues ("may overshoot").
    end: Option<Instant>,
    /// Whether to tell a Machine that another was preferred.
    tells: bool,
    tries: Tries,
}

impl<'a> Search<'a> {
    pub(crate) fn new(shared: &'a Arc<Shared>, end: Option<Instant>, tells: bool) -> Self {
        Self { shared, end, tells, tries: Tries::default() }
    }

    /// Sends the request to the preferred Machine if that can take it now, or be started; otherwise to another one, with a
    /// header that says so.
    /// Source: docs:networking/dynamic-request-routing.html.markerb (facts: 2.1).
    pub(crate) async fn reach(&mut self, wish: &Wish, request: &mut Outgoing) -> Result<Reached, Unreached> {
        if let Some(id) = &wish.prefer {
            match self.seek(&wish.exactly(id), request, false).await {
                Err(Unreached { code: Code::Interrupted, .. }) => return Err(Code::Interrupted.into()),
                Err(_) if self.tells => headers::set(&mut request.fields, PREFERRED_UNAVAILABLE, id),
                Err(_) => {}
                Ok(reached) => return Ok(reached),
            }
        }
        self.seek(wish, request, true).await
    }

    async fn seek(&mut self, wish: &Wish, request: &Outgoing, is_patient: bool) -> Result<Reached, Unreached> {
        loop {
            let slot = self.slot(wish, is_patient).await?;
            let id = slot.machine.id.clone();
            if slot.bounces {
                self.shared.registry.count(Code::RecentlyStopped);
            } else {
                self.pause(&id).await?;
                match upstream::send(self.shared, slot, &request.tape, || request.request()).await {
                    Ok(reached) => return Ok(reached),
                    Err(Failed::Unconnected(code)) => self.shared.registry.count(code),
                    Err(Failed::Begun) if request.may_begin_again(self.shared.settings.routing.retry_begun) => {
                        self.shared.registry.count(Code::Interrupted);
                        if !request.tape.can_play() {
                            return Err(Code::Interrupted.into());
                        }
                    }
                    Err(Failed::Begun) => return Err(Code::Interrupted.into()),
                }
            }
            self.tries.add(&id);
            if !is_patient || self.tries.total > self.shared.settings.routing.retries {
                return Err(Code::RetriesExhausted.into());
            }
        }
    }

    /// Waits for capacity on a Machine.
    async fn slot(&self, wish: &Wish, is_patient: bool) -> Result<Slot, Unreached> {
        let Shared { registry, settings, .. } = &**self.shared;
        let mut failed_before = None;
        let pick = || registry.pick(wish, &self.tries);
        let mut picked = pick();
        loop {
            match picked {
                Pick::Go(mut slot) => {
                    if let Some(machine) = slot.wake.take() {
                        self.shared.wake(machine);
                    }
                    return Ok(slot);
                }
                // It may have been stopped again meanwhile; only a failed start is not retried.
                Pick::Wake(machine, failed) if failed_before.is_some_and(|before| failed > before) => {
                    registry.start_given_up(&machine.id);
                    return Err(Code::WakeFailed.into());
                }
                Pick::Wake(machine, failed) => {
                    failed_before.get_or_insert(failed);
                    self.shared.wake(machine);
                    picked = pick();
                }
                Pick::Never(code) => return Err(code.into()),
                Pick::Wait(code) if !is_patient && code != Code::WakeTimeout => return Err(code.into()),
                Pick::Wait(mut code) => {
                    let place = registry.wait_in_line().ok_or(Code::NoCapacity)?;
                    let patience = Instant::now() + settings.scaled(settings.routing.queue_timeout);
                    let deadline = self.end.map_or(patience, |end| end.min(patience));
                    let found = registry.until(deadline, || match pick() {
                        Pick::Wait(why) => {
                            code = why;
                            None
                        }
                        other => Some(other),
                    });
                    let Some(found) = found.await else {
                        return Err(Unreached { code, is_timeout: self.is_over() });
                    };
                    drop(place);
                    picked = found;
                }
            }
        }
    }

    /// Pauses before a Machine is tried again.
    async fn pause(&self, id: &str) -> Result<(), Unreached> {
        if self.tries.of(id) > 0 {
            let settings = &self.shared.settings;
            let next = Instant::now() + settings.scaled(settings.routing.retry_pause);
            sleep_until(self.end.map_or(next, |end| end.min(next))).await;
            if self.is_over() {
                return Err(Unreached { code: Code::RetriesExhausted, is_timeout: true });
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| end <= Instant::now())
    }
}
