//! The head of an upstream response: checks it, adds Outrigger's headers, and gives back the permit.

use std::time::Instant;

use http::{StatusCode, Version, header};
use outrigger_wire::request::Kind;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use crate::engine::bounds::MOST_INTERIM;
use crate::engine::metrics::StreamKind;
use crate::engine::stages::breakers::{self, End};
use crate::engine::stages::{admit, limits};
use crate::engine::state::Phase;
use crate::general::Gateway;
use crate::general::context::Context;
use crate::general::heads::{add_session, edit_final, has_few_options, is_event_stream, response_length};
use crate::mechanism::limits::headers::Told;

/// A response longer than this is a transfer at the client's pace: its head alone counts for the circuit breaker.
const LARGE_BODY_BYTES: u64 = 1 << 20;

/// Rejects a head that Pingora would pass on although it is unasked for or excessive. [`crate::general::line`] has checked its
/// framing and size.
///
/// # Errors
/// Pingora's, for an invalid response.
pub(super) fn check(response: &ResponseHeader, context: &mut Context) -> Result<()> {
    if !has_few_options(response) {
        return Err(Error::explain(ErrorType::InvalidHTTPHeader, "`Connection` has too many options").into_up());
    }
    if response.status == StatusCode::SWITCHING_PROTOCOLS && context.exchange.kind != Kind::Upgrade {
        return Err(
            Error::explain(ErrorType::InvalidHTTPHeader, "it switches protocols without a request to").into_up()
        );
    }
    if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
        context.interim += 1;
        if context.interim > MOST_INTERIM {
            let text = "there are too many interim responses";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, text).into_up());
        }
    }
    Ok(())
}

impl Gateway {
    /// Prepares the head of a final response for the client.
    ///
    /// # Errors
    /// Pingora's, for a header that cannot be inserted.
    pub(super) fn relay_head(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        if session.req_header().version == Version::HTTP_10 {
            // Pingora sends a body of unknown length in chunks, which HTTP/1.0 lacks: there the end of the connection ends it.
            response.remove_header(&header::TRANSFER_ENCODING);
        }
        if self.state.drain.phase() != Phase::Serving {
            session.set_keepalive(None);
        }
        let told = limits::told(&context.exchange);
        let limits = told.as_ref().map(Told::own);
        let sends_id = context.exchange.rules.config.headers.request_id;
        edit_final(response, sends_id.then(|| context.exchange.request_id.as_bytes()), limits)?;
        add_session(response, &context.exchange)?;
        let is_event_stream = is_event_stream(response);
        context.exchange.stream = is_event_stream.then_some(StreamKind::EventStream);
        let length = response_length(response);
        let is_large = length.is_some_and(|bytes| bytes > LARGE_BODY_BYTES);
        let app = &context.exchange.rules.config.app;
        let pause = if is_event_stream { app.stream_timeout } else { context.exchange.route().timeout };
        self.head_has_come(context, is_event_stream || is_large, pause);
        admit::let_go_at_head(&mut context.exchange, length);
        if length.is_none() {
            // The response may take any time: a probe of the circuit breaker ends at its head.
            let end = End::Answered(context.exchange.status, Instant::now());
            breakers::ended(&self.state, &mut context.exchange, end);
        }
        context.release_permit_later();
        Ok(())
    }
}
