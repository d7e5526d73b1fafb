//! The latest events and changes, for operators. All lists are bounded: the oldest entries are forgotten.
//!
//! Bans and circuit breakers have lists of their own: clients can cause many of them, and must not displace a reload.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Changes of circuit breakers that are remembered.
const BREAKER_CHANGES: usize = 50;
/// Bans that are remembered as events, and changes of circuit breakers among the events: few, so that they hide nothing else.
const BANS: usize = 10;
const SHOWN_CHANGES: usize = 10;
/// Other events that are remembered.
const OTHERS: usize = 75;
/// The problems of a rejected configuration that are remembered.
const PROBLEMS: usize = 10;
/// The longest text that is remembered, in bytes.
const TEXT_BYTES: usize = 4096;
/// The longest sentence of an event, in bytes.
const SENTENCE_BYTES: usize = 300;

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The process has started.
    Start,
    /// A configuration came into force.
    Reload,
    /// A configuration was rejected.
    ReloadRefused,
    /// A circuit breaker changed, or an operator forced it.
    Breaker,
    /// A client was banned, or a ban was lifted.
    Ban,
    /// The app became unreachable, or is back.
    App,
    /// The app's process was started, stopped, or has ended.
    AppProcess,
    /// Requests were paused or resumed, or maintenance began or ended.
    Pause,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// The kind.
    pub kind: EventKind,
    /// One sentence. Clients have pseudonyms in it.
    pub text: String,
}

/// A change of a circuit breaker's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerChange {
    /// When.
    pub at: Timestamp,
    /// Its name.
    pub breaker: String,
    /// The state before.
    pub from: String,
    /// The state after.
    pub to: String,
    /// Why it opened.
    pub reason: Option<String>,
}

/// A problem of a rejected configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadProblem {
    /// Its place, such as `proxy.toml:3:13`.
    pub place: String,
    /// The expected and the found value.
    pub message: String,
    /// The remedy.
    pub hint: Option<String>,
}

/// A rejected configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedReload {
    /// When.
    pub at: Timestamp,
    /// The number of problems.
    pub count: usize,
    /// The first of them.
    pub problems: Vec<ReloadProblem>,
    /// All of them with their lines of the file, for operators only, and cut off if it is long.
    pub text: String,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    bans: VecDeque<Event>,
    breakers: VecDeque<BreakerChange>,
    refused: Option<RefusedReload>,
    away_since: Option<Timestamp>,
}

/// The latest events and changes.
#[derive(Debug, Default)]
pub struct History(Mutex<Kept>);

impl History {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Entries are added and removed as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event.
    pub fn add(&self, kind: EventKind, text: impl Into<String>) {
        let event = Event { at: Timestamp::now(), kind, text: shortened(text.into(), SENTENCE_BYTES) };
        let mut kept = self.lock();
        match kind {
            EventKind::Ban => push(&mut kept.bans, event, BANS),
            _ => push(&mut kept.events, event, OTHERS),
        }
    }

    /// Adds a change of a circuit breaker.
    pub fn breaker_changed(&self, breaker: &str, (from, to): (&str, &str), reason: Option<&str>) {
        let change = BreakerChange {
            at: Timestamp::now(),
            breaker: breaker.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            reason: reason.map(str::to_owned),
        };
        push(&mut self.lock().breakers, change, BREAKER_CHANGES);
    }

    /// Remembers why the last configuration was rejected, or forgets it: `None` for one that came into force.
    pub fn reloaded(&self, refused: Option<(usize, Vec<ReloadProblem>, String)>) {
        let refused = refused.map(|(count, mut problems, text)| {
            problems.truncate(PROBLEMS);
            for problem in &mut problems {
                problem.message = shortened(std::mem::take(&mut problem.message), SENTENCE_BYTES);
                problem.hint = problem.hint.take().map(|hint| shortened(hint, SENTENCE_BYTES));
            }
            RefusedReload { at: Timestamp::now(), count, problems, text: shortened(text, TEXT_BYTES) }
        });
        self.lock().refused = refused;
    }

    /// Remembers since when the app is unreachable.
    pub fn set_away(&self, is_away: bool) {
        self.lock().away_since = is_away.then(Timestamp::now);
    }

    /// Since when the app is unreachable.
    pub fn away_since(&self) -> Option<Timestamp> {
        self.lock().away_since
    }

    /// The last configuration, if it was rejected.
    pub fn refused_reload(&self) -> Option<RefusedReload> {
        self.lock().refused.clone()
    }

    /// The latest events, changes of circuit breakers included, the newest first.
    pub fn events(&self) -> Vec<Event> {
        let kept = self.lock();
        let changes = kept.breakers.iter().rev().take(SHOWN_CHANGES).map(|change| Event {
            at: change.at,
            kind: EventKind::Breaker,
            text: match &change.reason {
                Some(reason) if change.to == "open" => format!("breaker {} opened: {reason}", change.breaker),
                _ => format!("breaker {}: {} to {}", change.breaker, change.from, change.to),
            },
        });
        let mut events: Vec<Event> = kept.events.iter().chain(&kept.bans).cloned().chain(changes).collect();
        drop(kept);
        events.sort_by_key(|event| std::cmp::Reverse(event.at));
        events
    }

    /// The latest changes of circuit breakers, the newest first.
    pub fn breaker_changes(&self) -> Vec<BreakerChange> {
        self.lock().breakers.iter().rev().cloned().collect()
    }
}

fn push<T>(list: &mut VecDeque<T>, entry: T, most: usize) {
    if list.len() == most {
        list.pop_front();
    }
    list.push_back(entry);
}

fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_are_bounded_and_bans_displace_no_reload() {
        let history = History::default();
        history.add(EventKind::Reload, "version 2 is in force");
        for number in 0..1000 {
            history.add(EventKind::Ban, format!("client {number:016x} is banned"));
            history.breaker_changed("a", ("closed", "open"), Some("failure_rate"));
        }
        let events = history.events();
        // The page shows 40.
        assert_eq!(events.len(), 1 + BANS + SHOWN_CHANGES);
        assert_eq!(events.iter().filter(|event| event.kind == EventKind::Reload).count(), 1);
        assert!(events.is_sorted_by(|a, b| a.at >= b.at));
        assert_eq!(history.breaker_changes().len(), BREAKER_CHANGES);
    }

    #[test]
    fn a_rejected_configuration_is_remembered_in_part_until_the_next_one() {
        let history = History::default();
        let problem = ReloadProblem { place: "a:1:1".into(), message: "é".repeat(1000), hint: None };
        history.reloaded(Some((200, vec![problem; 200], "é".repeat(10_000))));
        let refused = history.refused_reload().unwrap();
        assert_eq!((refused.count, refused.problems.len()), (200, PROBLEMS));
        assert!(refused.text.len() < TEXT_BYTES + 4 && refused.problems[0].message.len() < SENTENCE_BYTES + 4);
        history.reloaded(None);
        assert_eq!(history.refused_reload(), None);
    }
}
