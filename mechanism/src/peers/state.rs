//! The state of peers, for a Machine without a snapshot.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_identity::clock;
use outrigger_identity::signing::{MAC_BYTES, Purpose};
use outrigger_identity::this::This;
use outrigger_rules::sections::peers::PeerRules;
use outrigger_rules::target::Target;
use outrigger_transport::app_pool::AppStream;
use pingora_load_balancing::discovery::ServiceDiscovery;
use tokio::task::JoinSet;

use crate::peers::discovery::Finder;
use crate::peers::hop::{Receiver, STATE_PATH};
use crate::peers::probe::{Check, signed};
use crate::peers::summary;

/// At most this many peers are asked: each snapshot may take `state.max_size` of memory.
const MOST_ASKED: usize = 8;

/// Asks the peers for their snapshots, all at the same time, and returns those that came within `patience`. `most` is the maximum size of
/// one. Call it before this Machine accepts connections: a list may contain this Machine itself.
pub async fn states_of(rules: &PeerRules, this: &This, most: usize, patience: Duration) -> Vec<Vec<u8>> {
    let until = clock::now() + patience;
    let finder = Finder::new(rules.found_by.clone(), rules.refresh);
    let found = tokio::time::timeout_at(until.into(), finder.discover()).await;
    let Ok(Ok((found, _))) = found else { return Vec::new() };
    let check = Arc::new(Check {
        this: this.clone(),
        nonces: Arc::default(),
        is_translated: rules.address.is_some(),
        patience,
        round: Arc::default(),
    });
    let mut asked = JoinSet::new();
    for backend in found.into_iter().take(MOST_ASKED) {
        if let Some(address) = backend.addr.as_inet() {
            asked.spawn(state_of(*address, Arc::clone(&check), most));
        }
    }
    let mut states = Vec::new();
    while let Ok(Some(answer)) = tokio::time::timeout_at(until.into(), asked.join_next()).await {
        states.extend(answer.ok().flatten().filter(|state| !state.is_empty()));
    }
    states
}

/// Asks the peer at this address. The request is signed for that peer alone: a snapshot names clients, so a program at its address must
/// not be able to pass the request on.
async fn state_of(address: SocketAddr, check: Arc<Check>, most: usize) -> Option<Vec<u8>> {
    let peer = check.probe(address).await.ok().filter(|peer| *peer.name != *check.this.name)?;
    let (nonce, receiver) = (check.nonces.next(), Receiver { name: &peer.name, run: peer.run });
    let asks = signed(&check.this, nonce, STATE_PATH, receiver);
    let stream = AppStream::connect(&Target::Tcp(address)).await.ok()?;
    let answer = outrigger_transport::ask::ask(stream, asks).await.ok()?;
    // The signature covers the nonce, so an earlier snapshot is not taken for this one.
    let body = answer.body(most.saturating_add(MAC_BYTES)).await.ok()?;
    summary::verify(&check.this.keys, Purpose::State, nonce, &body)
}
