//! One Machine first: a change that several Machines find in their files is tried by the one with the smallest name, and by the others once
//! it has passed its probation there.
//!
//! Each Machine decides for itself, from the signed summaries of its peers, which say what content they have in force, whether it is on
//! probation, and what they have taken back. The wait is bounded: [`Waiting::ends`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use outrigger_identity::clock;
use outrigger_policy::flags::Mode;
use outrigger_rules::config::Config;

use crate::control::probation::Terms;
use crate::control::reload::{Content, Reloader};
use crate::control::status::Status;
use crate::engine::guard::Undone;
use crate::engine::state::State;
use crate::mechanism::peers::probe::summary_of;
use crate::mechanism::peers::{Peer, Peers, Standing};

/// How often a Machine that waits looks at the others.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a peer may take for its summary.
const PATIENCE: Duration = Duration::from_secs(1);
/// A Machine that goes first has the change within this time; else only other Machines have it.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);
/// How long the others wait in addition to the probation.
const SPARE: Duration = Duration::from_secs(60);
/// Peers that are asked. With more, the first ones by name are the same for all.
const MOST_PEERS: usize = 100;

/// A change that waits for its turn.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    content: Content,
    since: Instant,
    /// Then it is tried, regardless of the others.
    ends: Instant,
}

impl Waiting {
    /// A change that this Machine has just found.
    pub fn new(content: Content, config: &Config) -> Self {
        let since = clock::now();
        Self { content, since, ends: since + config.reload.probation + SPARE }
    }
}

/// Whether other Machines may have the same change.
pub fn has_peers(state: &State, config: &Config) -> bool {
    let is_there = |peers: &Arc<Peers>| peers.seen().peers.iter().any(|peer| peer.standing() != Standing::Silent);
    config.reload.one_first && config.reload.mode != Mode::Off && state.peers.as_ref().is_some_and(is_there)
}

/// The decision of a Machine about a change.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Turn {
    /// It tries it.
    Go,
    /// It waits for this one.
    Wait(String),
    /// It does not try it: this one has taken it back.
    Skip(String, Undone),
}

/// Brings changes into force when it is their turn, for the life of the process.
pub async fn keep(reloader: Arc<Reloader>) {
    let Some(peers) = reloader.state.peers.clone() else { return };
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(waiting) = reloader.trials.lock().await.waiting else { continue };
        let seen = peers.seen();
        let there = seen.peers.iter().filter(|peer| peer.standing() != Standing::Silent);
        let mut there: Vec<&Arc<Peer>> = there.collect();
        there.sort_by(|a, b| a.name.cmp(&b.name));
        let asked = there.into_iter().take(MOST_PEERS).map(async |peer| {
            let summary = summary_of(&peers, peer, PATIENCE).await.ok()?;
            Some((peer.name.to_string(), serde_json::from_slice::<Status>(&summary).ok()?))
        });
        let others: Vec<(String, Status)> = join_all(asked).await.into_iter().flatten().collect();
        let turn = turn(&peers.this.name, &others, waiting, clock::now());
        take(&reloader, waiting, turn).await;
    }
}

/// Whose turn it is. `others` are the peers that respond, by name.
fn turn(this: &str, others: &[(String, Status)], waiting: Waiting, now: Instant) -> Turn {
    let content = waiting.content.to_string();
    let undone = |status: &Status| {
        let undone = status.config.undone.as_ref().filter(|undone| undone.content == content && !undone.is_kept)?;
        Some(Undone {
            at: undone.at,
            version: undone.version,
            measure: "elsewhere",
            text: undone.text.clone(),
            is_kept: false,
            is_in_file: true,
            content: content.clone(),
        })
    };
    if let Some((name, undone)) = others.iter().find_map(|(name, status)| Some((name, undone(status)?))) {
        return Turn::Skip(name.clone(), undone);
    }
    let has_it = |status: &Status| status.config.content.as_deref() == Some(&content);
    if others.iter().any(|(_, status)| has_it(status) && status.config.probation.is_none()) || now >= waiting.ends {
        return Turn::Go;
    }
    if let Some((name, _)) = others.iter().find(|(_, status)| has_it(status)) {
        return Turn::Wait(name.clone());
    }
    // No Machine has begun. Those before this one have some time each, one after the other.
    let before = others.iter().filter(|(name, _)| name.as_str() < this);
    let patience = |number: u32| now < waiting.since + BEGINS_WITHIN * number;
    let mut ahead = (1..).zip(before);
    ahead.find(|(number, _)| patience(*number)).map_or(Turn::Go, |(_, (name, _))| Turn::Wait(name.clone()))
}

async fn take(reloader: &Reloader, waiting: Waiting, turn: Turn) {
    let mut trials = reloader.trials.lock().await;
    // The file may have changed meanwhile.
    if trials.waiting.is_none_or(|now| now.content != waiting.content) {
        return;
    }
    let state = &reloader.state;
    match turn {
        Turn::Wait(name) => {
            if state.guard.shown().waiting.as_ref() != Some(&name) {
                tracing::info!(
                    event = "config_waits",
                    machine = name,
                    "the changed configuration is tried on Machine {name} first"
                );
                state.guard.show_waiting(Some(name));
            }
        }
        Turn::Skip(name, undone) => {
            tracing::error!(
                event = "config_undone_elsewhere",
                machine = name,
                "the changed configuration is not tried: Machine {name} has taken it back: {}",
                undone.text
            );
            trials.skip(state, waiting.content, undone);
        }
        Turn::Go => {
            trials.waiting = None;
            state.guard.show_waiting(None);
            match reloader.read(true).await {
                Ok((checked, content)) if content == waiting.content => {
                    trials.change(reloader, checked, content, Terms::default());
                }
                // It is being changed: the watch finds it.
                Ok(_) => {}
                Err(e) => reloader.refuse(&e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{Configuration, Probation, Undone as ShownUndone};

    fn with(content: Option<Content>, is_on_probation: bool) -> Status {
        let probation = is_on_probation.then(Probation::default);
        let content = content.map(|content| content.to_string());
        let config = Configuration { content, probation, ..Configuration::default() };
        Status { config, ..Status::default() }
    }

    #[test]
    fn the_first_one_goes_and_the_others_follow_when_it_has_passed() {
        let (new, now) = (Content::of(b"new"), Instant::now());
        let waiting = Waiting { content: new, since: now, ends: now + SPARE * 2 };
        let others = |status: Status| [("a".to_owned(), status), ("c".to_owned(), with(None, false))];
        let at = |seconds| now + Duration::from_secs(seconds);
        let wait = Turn::Wait("a".to_owned());
        // No Machine has it yet.
        let none = others(with(Some(Content::of(b"old")), false));
        assert_eq!(turn("0", &none, waiting, now), Turn::Go);
        assert_eq!(turn("b", &none, waiting, now), wait);
        assert_eq!(turn("b", &none, waiting, at(11)), Turn::Go);
        assert_eq!(turn("d", &none, waiting, at(11)), Turn::Wait("c".to_owned()));
        assert_eq!(turn("d", &none, waiting, at(21)), Turn::Go);
        // The first one tries it; also one with a smaller name waits then.
        let tries = others(with(Some(new), true));
        assert_eq!([turn("b", &tries, waiting, at(50)), turn("0", &tries, waiting, at(1))], [wait.clone(), wait]);
        assert_eq!(turn("b", &tries, waiting, at(121)), Turn::Go);
        // It has passed.
        assert_eq!(turn("b", &others(with(Some(new), false)), waiting, at(1)), Turn::Go);
        // It has vanished.
        assert_eq!(turn("b", &[], waiting, at(1)), Turn::Go);
    }

    #[test]
    fn a_change_that_one_has_taken_back_is_not_tried_by_the_others() {
        let (new, now) = (Content::of(b"new"), Instant::now());
        let waiting = Waiting { content: new, since: now, ends: now };
        let mut status = with(Some(new), false);
        let undone = ShownUndone { content: new.to_string(), text: "504".into(), ..ShownUndone::default() };
        status.config.undone = Some(undone);
        let Turn::Skip(name, undone) = turn("0", &[("z".to_owned(), status)], waiting, now) else { panic!() };
        assert_eq!((name.as_str(), undone.text.as_str()), ("z", "504"));
    }
}
