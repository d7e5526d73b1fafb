//! The stage that rejects banned clients, and the offences that lead to bans.

use outrigger_identity::clock;
use outrigger_policy::abuse::Offence;
use outrigger_policy::flags::Mode;
use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::notices;
use crate::engine::receipts::steps::Step;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;

/// Stage: rejects banned clients.
///
/// # Errors
/// [`Rejection::Banned`]
pub fn check(state: &State, _: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let is_other_place = exchange.route().is_health || !exchange.is_counted_here();
    if !state.bans.any() || is_other_place {
        return Ok(());
    }
    let rules = &exchange.rules.config.abuse;
    if exchange.admission == Mode::Off || rules.mode == Mode::Off {
        return Ok(());
    }
    let now = state.nanoseconds(exchange.started);
    let Some(ban) = state.bans.in_force(&exchange.client, now) else { return Ok(()) };
    // A ban by an operator is enforced in `monitor` mode as well.
    let is_monitored = rules.mode == Mode::Monitor || exchange.admission == Mode::Monitor;
    if is_monitored && ban.offence != Offence::Operator {
        let (priority, tier) = (exchange.route().priority, exchange.client.tier);
        state.metrics.rejections.refusals.monitored(Rejection::BANNED, priority, tier);
        exchange.steps.add(exchange.started, Step::Monitored(Rejection::Banned { retry_after: ban.left(now) }));
        return Ok(());
    }
    Err(Rejection::Banned { retry_after: ban.left(now) })
}

/// Counts an offence; too many lead to a ban.
pub fn offend(state: &State, exchange: &mut Exchange, offence: Offence) {
    let rules = &exchange.rules.config.abuse;
    if rules.quotas[offence as usize].is_none() {
        return;
    }
    let is_other_place = exchange.route().is_health || !exchange.is_counted_here();
    if exchange.admission == Mode::Off || rules.mode == Mode::Off || is_other_place {
        return;
    }
    let now = state.nanoseconds(clock::now());
    let Some((ban, who)) = state.bans.offend(&exchange.client, offence, now, rules, &state.limits) else { return };
    let mode = if exchange.admission == Mode::Monitor { Mode::Monitor } else { rules.mode };
    state.metrics.bans.count(offence, mode);
    tracing::warn!(
        client = who,
        reason = offence.name(),
        times = ban.times,
        mode = mode.name(),
        request_id = %exchange.request_id,
        ban_s = ban.left(now).as_secs(),
        "a client is banned"
    );
    notices::banned(state, exchange, offence.name(), ban.left(now).as_secs(), mode);
    exchange.steps.add(exchange.started, Step::Banned(offence, mode));
}
