//! The request: its limits on the client's side, and its head as the app or a peer gets it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::{Version, header};
use outrigger_identity::clock::seconds;
use outrigger_wire::forwarding::Added;
use outrigger_wire::names::X_OUTRIGGER_HOP;
use outrigger_wire::request::Kind;
use pingora::Result;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;

use crate::engine::claims;
use crate::engine::exchange::{Destination, Exchange};
use crate::general::heads::{edit_request, join_cookies, view};
use crate::general::{Gateway, h2};
use crate::mechanism::peers::hop::Hop;

/// How long the rest of a rejected request's body is read, to keep the connection.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl Gateway {
    /// Begins a request: sets the client's time limits and records its address.
    pub(super) fn prepare(&self, session: &mut Session, exchange: &mut Exchange) {
        let limits = exchange.rules.config.client;
        let connected = session.client_addr().and_then(|address| address.as_inet()).map(SocketAddr::ip);
        if let Some(address) = connected {
            exchange.connected = address.to_canonical();
        }
        let mut in_flight = self.state.enter();
        if let ServerSession::H2(h2) = session.as_ref()
            && let Some(connection) = h2.digest().and_then(|digest| digest.socket_digest.as_ref())
            && let Some(connection) = h2::connection(connection)
        {
            in_flight.on(connection);
        }
        exchange.in_flight = Some(in_flight);
        exchange.listener = self.listener;
        session.set_read_timeout(Some(limits.body_timeout));
        session.set_write_timeout(Some(limits.write_timeout));
        session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
    }

    /// Removes the headers that the sender may not set, adds Outrigger's own, and signs a request to a peer.
    ///
    /// # Errors
    /// Pingora's, for a header that cannot be inserted.
    pub(super) fn write_head(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let mut added = Added::default();
        let received = session.req_header().version;
        let forwarding = exchange.forwarding(received, &self.state.pseudonym, Instant::now());
        added.fill(&view(session.req_header(), false), &forwarding);
        let removed = edit_request(request, &added, exchange.sieve(), exchange.sticky.is_enforced())?;
        claims::removed(&self.state, exchange, &removed);
        if received == Version::HTTP_2 {
            join_cookies(request)?;
        }
        if exchange.kind == Kind::Upgrade {
            request.insert_header(header::CONNECTION, "Upgrade")?;
            request.insert_header(header::UPGRADE, "websocket")?;
        }
        if !request.headers.contains_key(header::HOST) {
            // HTTP/1.0 needs none, and the request is sent as HTTP/1.1, which does (RFC 9112 section 3.2).
            request.insert_header(header::HOST, "")?;
        }
        if let Destination::Peer(peer, kind) = &exchange.destination
            && let Some(peers) = &self.state.peers
        {
            // Pingora has removed the framing, and adds it again after this hook by the same rule. The signature covers it.
            if !session.as_mut().is_body_empty()
                && !request.headers.contains_key(header::CONTENT_LENGTH)
                && !request.headers.contains_key(header::TRANSFER_ENCODING)
            {
                request.insert_header(header::TRANSFER_ENCODING, "chunked")?;
            }
            // Last, because the signature covers the whole head.
            let from = peers.this.name.as_ref().into();
            let hop = Hop { kind: *kind, client: exchange.client.address, nonce: peers.nonces.next(), from };
            let sealed = hop.sign(&peers.this.keys, &view(request, false), peer.receiver(), seconds());
            request.insert_header(&X_OUTRIGGER_HOP, sealed)?;
        }
        Ok(())
    }
}
