//! Bans: which offences lead to one, and which clients are banned.
//!
//! Offences are counted in the same table as rate limits, with one quota per kind. Without bans, requests need no
//! lookup.

pub mod metrics;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use outrigger_identity::client::Client;
use outrigger_identity::hash::mix;
use outrigger_policy::abuse::{Ban, Offence};
use outrigger_policy::saved::{LONGEST_NAME, SavedBan, Shift};
use outrigger_rules::sections::abuse::BanRules;
use outrigger_rules::sections::limits::marked;

use crate::limits::table::Table;

/// A banned client.
#[derive(Clone, Debug)]
pub struct Banned {
    /// The name that operators use: `address:192.0.2.1`, `key:acme`, `user:ann`.
    pub who: String,
    /// The end of the ban, and the reason.
    pub ban: Ban,
}

/// At the maximum, one in this many bans ends early.
const MAKE_ROOM: usize = 16;

/// Returns the tag for the offences of one kind by a client. Its mark is the kind.
fn tag(client: u64, offence: Offence) -> u64 {
    marked(mix(client ^ mix(u64::MAX - offence as u64)), offence as u64)
}

/// All clients that are banned, or were recently, by the hash of the client.
#[derive(Debug, Default)]
pub struct Bans {
    by_client: DashMap<u64, Banned>,
    /// The number of remembered bans: almost always zero, and then there is no lookup.
    remembered: AtomicUsize,
}

impl Bans {
    /// Returns whether any ban is remembered. Without one, no client needs a lookup.
    pub fn any(&self) -> bool {
        self.remembered.load(Ordering::Relaxed) > 0
    }

    /// Returns the ban in force for a client, or for its address.
    ///
    /// A ban of an address that unverified clients have caused does not apply to a verified client there, and the ban of a
    /// verified client applies to no other client. A ban by an operator applies to all clients of the address.
    pub fn in_force(&self, client: &Client, now: u64) -> Option<Ban> {
        let concerns = |ban: &Ban| client.verified.is_none() || ban.offence == Offence::Operator;
        self.holding(client.id, now).or_else(|| self.holding(client.address_id, now).filter(concerns))
    }

    /// Counts an offence in `table`. Returns the ban to which too many of them lead, if it is a new one, and the client's name
    /// for operators.
    pub fn offend(
        &self,
        client: &Client,
        offence: Offence,
        now: u64,
        rules: &BanRules,
        table: &Table,
    ) -> Option<(Ban, String)> {
        let quota = rules.quotas[offence as usize]?;
        let tag = tag(client.id, offence);
        match table.take(tag, quota, now, 1, || tag) {
            Ok(_) => return None,
            // When the table is full, other clients may have caused the offences in the shared cell.
            Err(refused) if refused.overflowed => return None,
            Err(_) => {}
        }
        if rules.allow.iter().any(|network| network.contains(client.address)) {
            return None;
        }
        let who = client.shown();
        let ban = self.add(client.id, &who, offence, now, rules)?;
        // After a ban the count starts again.
        table.forget(tag);
        Some((ban, who))
    }

    /// Returns the ban in force for `client`.
    fn holding(&self, client: u64, now: u64) -> Option<Ban> {
        self.by_client.get(&client).map(|banned| banned.ban).filter(|ban| ban.holds(now))
    }

    /// Bans a client; gives the ban if it is a new one.
    fn add(&self, client: u64, who: &str, offence: Offence, now: u64, rules: &BanRules) -> Option<Ban> {
        self.make_room(client, now, rules);
        let mut is_new = false;
        let mut entry = self.by_client.entry(client).or_insert_with(|| {
            is_new = true;
            let ban = Ban::after(None, offence, now, rules.bans);
            Banned { who: who.to_owned(), ban }
        });
        let ban = if is_new { entry.ban } else { Ban::after(Some(entry.ban), offence, now, rules.bans) };
        is_new |= ban != entry.ban;
        entry.ban = ban;
        drop(entry);
        self.remembered.store(self.by_client.len(), Ordering::Relaxed);
        is_new.then_some(ban)
    }

    /// By an operator, for a given time.
    pub fn set(&self, client: u64, who: &str, length: Duration, now: u64, rules: &BanRules) -> Ban {
        self.make_room(client, now, rules);
        let ban = Ban::of(length, now);
        self.by_client.insert(client, Banned { who: who.to_owned(), ban });
        self.remembered.store(self.by_client.len(), Ordering::Relaxed);
        ban
    }

    /// Lifts a ban, and resets the client's offences. Returns false if there was no ban.
    pub fn lift(&self, client: u64, now: u64, table: &Table) -> bool {
        let lifted = self.by_client.remove(&client).is_some_and(|(_, banned)| banned.ban.holds(now));
        self.remembered.store(self.by_client.len(), Ordering::Relaxed);
        for offence in Offence::ALL {
            table.forget(tag(client, offence));
        }
        lifted
    }

    /// Returns the bans in force; the one that ends first is at the front.
    pub fn list(&self, now: u64) -> Vec<Banned> {
        let mut holding: Vec<Banned> =
            self.by_client.iter().filter(|entry| entry.ban.holds(now)).map(|entry| entry.clone()).collect();
        holding.sort_by_key(|banned| banned.ban.until);
        holding
    }

    /// Returns the number of bans in force.
    pub fn held(&self, now: u64) -> usize {
        self.by_client.iter().filter(|entry| entry.ban.holds(now)).count()
    }

    /// Returns all bans that are not forgotten, for a snapshot.
    pub fn saved(&self, now: u64, rules: &BanRules) -> Vec<SavedBan> {
        let counts = |banned: &Banned| !banned.ban.is_forgotten(now, rules.bans) && banned.who.len() <= LONGEST_NAME;
        let all = self.by_client.iter().filter(|entry| counts(entry));
        all.map(|entry| SavedBan { who: entry.who.clone(), ban: entry.ban }).collect()
    }

    /// Restores bans of an earlier process or of a peer; of two bans of one client, the one that ends later holds. `is_same_seed`: hashes
    /// are the same as there. Returns how many hold.
    pub fn restore(&self, saved: &[SavedBan], shift: Shift, rules: &BanRules, is_same_seed: bool) -> usize {
        let mut held = 0;
        for SavedBan { who, ban } in saved {
            let ban = ban.restored(shift, rules.bans);
            let Some((who, client)) = Client::named(who) else { continue };
            // Such a name is a hash.
            let is_known = is_same_seed || !who.starts_with("unknown-key:");
            if !is_known || ban.is_forgotten(shift.now, rules.bans) {
                continue;
            }
            self.make_room(client, shift.now, rules);
            let mut entry = self.by_client.entry(client).or_insert_with(|| Banned { who, ban });
            if ban.until > entry.ban.until {
                entry.ban = ban;
            }
            drop(entry);
            held += usize::from(ban.holds(shift.now));
        }
        self.remembered.store(self.by_client.len(), Ordering::Relaxed);
        held
    }

    fn make_room(&self, client: u64, now: u64, rules: &BanRules) {
        if self.by_client.len() < rules.max_bans || self.by_client.contains_key(&client) {
            return;
        }
        self.by_client.retain(|_, banned| !banned.ban.is_forgotten(now, rules.bans));
        if self.by_client.len() < rules.max_bans {
            return;
        }
        // Remove a share of them at once: finding the first takes as long as finding many.
        let mut ends: Vec<(u64, u64)> = self.by_client.iter().map(|entry| (entry.ban.until, *entry.key())).collect();
        ends.sort_unstable();
        let too_many = ends.len() + 1 - rules.max_bans;
        for (_, client) in ends.iter().take(too_many.max(rules.max_bans / MAKE_ROOM)) {
            self.by_client.remove(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_policy::abuse::Settings;
    use outrigger_policy::flags::Mode;

    fn rules(max_bans: usize) -> BanRules {
        let bans = Settings { first: Duration::from_secs(60), longest: Duration::from_secs(600) };
        BanRules { mode: Mode::Enforce, quotas: [None; 4], bans, allow: Vec::new(), max_bans }
    }

    #[test]
    fn a_ban_is_listed_and_lifted_by_name() {
        let bans = Bans::default();
        assert!(bans.add(1, "address:192.0.2.1", Offence::NotFound, 5, &rules(10)).is_some());
        assert_eq!(bans.add(1, "address:192.0.2.1", Offence::NotFound, 6, &rules(10)), None, "it is banned already");
        assert_eq!(bans.list(5).len(), 1);
        assert!(bans.holding(1, 5).is_some() && bans.holding(2, 5).is_none());
        let table = Table::new(10);
        assert!(!bans.lift(2, 5, &table));
        assert!(bans.lift(1, 5, &table));
        assert_eq!((bans.held(5), bans.remembered.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn bans_are_restored_by_name_and_the_later_end_holds() {
        let (rules, minute) = (rules(10), Duration::from_secs(60));
        let (before, second) = (Bans::default(), 1_000_000_000);
        let (address, hash) = Client::named("address:192.0.2.7").unwrap();
        before.set(hash, &address, minute, 0, &rules);
        before.set(9, "unknown-key:0000000000000009", minute, 0, &rules);
        before.set(5, "key:old", Duration::from_secs(1), 0, &rules);
        let saved = before.saved(10 * second, &rules);
        assert_eq!(saved.len(), 3, "a ban that is over counts for the next one");
        let shift = Shift { was: 10 * second, now: 500 * second, age: 20 * second };
        let after = Bans::default();
        assert_eq!(after.restore(&saved, shift, &rules, false), 1, "a foreign hash names nobody here");
        assert_eq!(after.holding(hash, 500 * second).unwrap().left(500 * second), Duration::from_secs(30));
        assert_eq!(after.restore(&saved, shift, &rules, true), 2);
        // A peer's ban of the same client ends earlier.
        let earlier = Shift { age: 40 * second, ..shift };
        after.restore(&saved, earlier, &rules, true);
        assert_eq!(after.holding(hash, 500 * second).unwrap().left(500 * second), Duration::from_secs(30));
        assert!(after.any() && after.list(500 * second).iter().any(|banned| banned.who == address));
    }

    #[test]
    fn a_full_table_drops_the_ban_that_ends_first() {
        let bans = Bans::default();
        for client in 0..5 {
            bans.set(client, &client.to_string(), Duration::from_secs(60 + client), 0, &rules(3));
        }
        let left: Vec<String> = bans.list(0).into_iter().map(|banned| banned.who).collect();
        assert_eq!(left, ["2", "3", "4"]);
    }
}
