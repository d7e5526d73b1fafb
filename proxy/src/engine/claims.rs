//! Counts headers that are removed from requests because their sender is not trusted.

use std::net::IpAddr;

use outrigger_identity::hash::client_hash;
use outrigger_wire::sieve::Removed;

use crate::engine::exchange::Exchange;
use crate::engine::state::State;
use crate::mechanism::claims::Merged;

/// Counts headers removed from a request, and logs if a proxy in front is probably not trusted.
pub fn removed<N: AsRef<str>, V: AsRef<[u8]>>(state: &State, exchange: &mut Exchange, removed: &Removed<N, V>) {
    if exchange.hop.is_some() {
        return;
    }
    if removed.forged {
        state.metrics.claims.forged_fields.inc();
        exchange.audit.forged = Some("forwarding_field");
    }
    let Some((header, value)) = &removed.claim else { return };
    let now = state.nanoseconds(exchange.started);
    if let Some(Merged { from, addresses }) =
        state.claims.note(exchange.connected, client_hash(b'c', value.as_ref()), now)
    {
        let header = header.as_ref();
        let network = match from {
            IpAddr::V4(_) => format!("{from}/32"),
            IpAddr::V6(_) => format!("{from}/128"),
        };
        tracing::warn!(
            %from,
            addresses,
            header,
            setting = "identity.trusted, identity.edge",
            "requests from {from} name about {addresses} clients in {header}, which is ignored: all of them count as one \
             client. If {from} is your proxy, set identity.trusted = [\"{network}\"] (or its network) and, unless that \
             suffices, identity.edge = \"{header}\"; if not, a client forges the header"
        );
    }
}
