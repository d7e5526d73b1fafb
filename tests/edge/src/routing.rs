//! Chooses the Machine for a request, among those that can take it.
//!
//! Source: docs:reference/load-balancing.html.md (facts: 1.2, 6.1): the least loaded one below its soft limit, then below its
//! hard limit, ties at random; another region only if none here can take it, so soft limits never shift regions.

use crate::settings::Concurrency;

/// Constraints for the next choice, from a Machine's response or the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Only this Machine.
    pub instance: Option<String>,
    /// This Machine if it can take the request; tried first, alone.
    pub prefer: Option<String>,
    /// In order of preference; region codes and aliases.
    pub regions: Vec<String>,
    /// No other regions than these.
    pub only_regions: bool,
    /// Not this Machine.
    pub elsewhere: Option<String>,
    /// A Machine that is named counts even if it is cordoned; others never do.
    pub reaches_cordoned: bool,
}

impl Wish {
    /// The same for only this Machine.
    pub fn exactly(&self, id: &str) -> Self {
        Self { instance: Some(id.to_owned()), prefer: None, ..self.clone() }
    }

    /// Distance of a Machine in this region, or `None` if the wish excludes it.
    pub fn distance(&self, region: &str, here: &str) -> Option<usize> {
        let local = usize::from(region != here);
        match self.regions.iter().position(|wish| includes(wish, region)) {
            Some(place) => Some(place * 2 + local),
            None if self.only_regions => None,
            None => Some(self.regions.len() * 2 + local),
        }
    }
}

/// A Machine that could take the request now.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub id: &'a str,
    pub load: usize,
    pub distance: usize,
    /// How often this request has failed there.
    pub tries: u32,
}

/// The best of these, all of which are below their hard limit.
pub fn choose<'a>(
    candidates: &[Candidate<'a>],
    limits: Concurrency,
    random: &mut fastrand::Rng,
) -> Option<Candidate<'a>> {
    let rank = |c: &Candidate<'_>| (c.tries, c.distance, c.load >= limits.soft_limit, c.load);
    let best = candidates.iter().map(rank).min()?;
    let equals = candidates.iter().filter(|c| rank(c) == best);
    let pick = random.usize(..equals.clone().count());
    equals.copied().nth(pick)
}

/// Region codes by area. Source: docs:networking/dynamic-request-routing.html.markerb (facts: 2.1); the codes are docs:reference/regions.
const AREAS: [(&str, &[&str]); 5] = [
    ("apac", &["bom", "hkg", "nrt", "sin", "syd"]),
    ("eu", &["ams", "arn", "cdg", "fra", "lhr", "mad", "otp", "waw"]),
    (
        "na",
        &[
            "atl", "bos", "den", "dfw", "ewr", "gdl", "iad", "lax", "mia", "ord", "phx", "qro", "sea", "sjc", "yul",
            "yyz",
        ],
    ),
    ("sa", &["bog", "eze", "gig", "gru", "scl"]),
    ("us", &["atl", "bos", "den", "dfw", "ewr", "iad", "lax", "mia", "ord", "phx", "sea", "sjc"]),
];

/// Whether `region` is this code, or in the area of this alias.
fn includes(wish: &str, region: &str) -> bool {
    let alias = if wish == "usa" { "us" } else { wish };
    let is_in_area = || AREAS.iter().any(|(name, codes)| *name == alias && codes.contains(&region));
    wish == "any" || wish == region || is_in_area()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ConcurrencyKind;

    const LIMITS: Concurrency = Concurrency { kind: ConcurrencyKind::Requests, soft_limit: 2, hard_limit: Some(4) };

    fn of<'a>(id: &'a str, load: usize, distance: usize) -> Candidate<'a> {
        Candidate { id, load, distance, tries: 0 }
    }

    fn chosen(candidates: &[Candidate<'_>]) -> String {
        choose(candidates, LIMITS, &mut fastrand::Rng::with_seed(1)).unwrap().id.to_owned()
    }

    #[test]
    fn the_least_loaded_machine_is_chosen() {
        assert_eq!(chosen(&[of("a", 1, 0), of("b", 0, 0), of("c", 3, 0)]), "b");
    }

    #[test]
    fn a_soft_limit_never_shifts_the_region() {
        assert_eq!(chosen(&[of("here", 3, 0), of("far", 0, 1)]), "here");
    }

    #[test]
    fn machines_that_failed_are_tried_last() {
        let tried = Candidate { tries: 1, ..of("tried", 0, 0) };
        assert_eq!(chosen(&[tried, of("far and full", 3, 1)]), "far and full");
    }

    #[test]
    fn ties_are_random_but_reproducible_by_seed() {
        let equals = [of("a", 0, 0), of("b", 0, 0)];
        let choices = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            (0..32).map(|_| choose(&equals, LIMITS, &mut random).unwrap().id).collect::<String>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
        assert!(choices(1).contains('a') && choices(1).contains('b'));
    }

    #[test]
    fn regions_are_tried_in_the_requested_order() {
        let wish = |regions: &[&str], only_regions| Wish {
            regions: regions.iter().map(|&r| r.to_owned()).collect(),
            only_regions,
            ..Wish::default()
        };
        assert_eq!(wish(&["iad", "eu"], true).distance("lhr", "ams"), Some(3));
        assert_eq!(wish(&["iad", "eu"], true).distance("syd", "ams"), None);
        assert!(wish(&["sjc", "any"], true).distance("syd", "ams").is_some());
        assert!(wish(&["usa"], false).distance("ord", "ams") < wish(&["usa"], false).distance("ams", "ams"));
    }
}
