//! Responses of Outrigger's own, written through Pingora's session.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use outrigger_identity::clock::seconds;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use crate::engine::answer::OwnResponse;
use crate::engine::exchange::Exchange;
use crate::engine::rejection::{Problem, Rejection};
use crate::engine::reply;
use crate::engine::stages::audit;
use crate::engine::state::Phase;
use crate::general::Gateway;
use crate::general::heads::content_length;
use crate::mechanism::affinity::replay;

/// How much of a rejected request's body is read at most, to keep the connection.
const DRAIN_BYTES: u64 = 1 << 20;

impl Gateway {
    /// Sends a rejection. The client's connection stays open where the protocol allows it.
    pub(super) async fn reject(&self, session: &mut Session, exchange: &mut Exchange, rejection: Rejection) {
        exchange.rejection = Some(rejection);
        if matches!(rejection, Rejection::BodyTooSlow | Rejection::TooManyUploads) {
            // The rest of the body may never arrive.
            session.set_keepalive(None);
        } else {
            self.keep_after_answer(session);
        }
        self.answer(session, exchange, &rejection.problem()).await;
    }

    /// Keeps the connection open after a response of our own, if the unread rest of the request is short.
    fn keep_after_answer(&self, session: &mut Session) {
        let unread = content_length(session.req_header());
        let waits_for_us = session.req_header().headers.contains_key(header::EXPECT);
        if unread.is_some_and(|bytes| bytes <= DRAIN_BYTES)
            && !waits_for_us
            && let ServerSession::H1(h1) = session.as_mut()
        {
            h1.set_close_on_response_before_downstream_finish(false);
        }
        if self.state.drain.phase() != Phase::Serving {
            session.set_keepalive(None);
        }
    }

    /// Sends a problem.
    pub(super) async fn answer(&self, session: &mut Session, exchange: &mut Exchange, problem: &Problem) {
        let reply = reply::entered(&self.state, exchange, problem).await;
        let written = match own_head(&OwnResponse::reply(exchange, &reply)) {
            Ok(head) => write_own(session, head, Bytes::from(reply.body)).await,
            Err(e) => Err(e),
        };
        if let Err(e) = written {
            tracing::debug!(request_id = %exchange.request_id, "the response could not be sent: {e}");
        }
    }

    /// Waits until the event is in the audit log on disk, if its class requires that before the response.
    ///
    /// # Errors
    /// Pingora's: the event cannot be written, and the request is rejected.
    pub(super) async fn entered(&self, exchange: &mut Exchange) -> Result<()> {
        let Err(rejection) = audit::before_response(&self.state, exchange).await else { return Ok(()) };
        exchange.rejection = Some(rejection);
        let status = rejection.problem().status.as_u16();
        Err(Error::explain(ErrorType::HTTPStatus(status), "it cannot be recorded in the audit log"))
    }

    /// Asks the edge to send the request to its session's home.
    pub(super) async fn replay(&self, session: &mut Session, exchange: &mut Exchange, home: &str) {
        let rules = Arc::clone(&exchange.rules);
        let (Some(this), Some(affinity)) = (&rules.config.this, &rules.config.affinity) else { return };
        let value = replay::field(this, home, affinity.replay_timeout, seconds());
        self.keep_after_answer(session);
        exchange.status = StatusCode::TEMPORARY_REDIRECT.as_u16();
        let written = match own_head(&OwnResponse::replay(exchange, &value)) {
            Ok(head) => write_own(session, head, Bytes::new()).await,
            Err(e) => Err(e),
        };
        if let Err(e) = written {
            tracing::debug!(request_id = %exchange.request_id, "the replay could not be sent: {e}");
        }
    }
}

/// The head of a response of our own, in Pingora's type.
fn own_head(response: &OwnResponse<'_>) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(response.status(), Some(8))?;
    let mut put = Ok(());
    response.headers(|name, value| {
        if let Err(e) = head.insert_header(name, value) {
            put = Err(e);
        }
    });
    put.map(|()| head)
}

/// Writes a response of our own.
async fn write_own(session: &mut Session, head: ResponseHeader, body: Bytes) -> Result<()> {
    let has_no_body = body.is_empty() || session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(head), has_no_body).await?;
    if !has_no_body {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}
