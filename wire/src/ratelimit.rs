//! The `RateLimit-Policy` and `RateLimit` response headers (draft-ietf-httpapi-ratelimit-headers-10).
//!
//! ```text
//! RateLimit-Policy: "medium";q=100;w=60      100 requests in 60 seconds
//! RateLimit: "medium";r=42;t=35              42 remain; the quota is full again in 35 seconds
//! ```

use std::cell::RefCell;

use crate::structured::{items, leading_number, name_of, number_of};

/// One item of `RateLimit-Policy`: `burst` requests in `window_s` seconds. Names need no escaping in structured fields.
pub fn policy(name: &str, burst: u32, window_s: u64) -> String {
    format!("\"{name}\";q={burst};w={window_s}")
}

/// One limit, and its remaining quota.
#[derive(Clone, Copy, Debug, Default)]
pub struct Item<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its [`policy`].
    pub policy: &'a str,
    /// Requests that may come at once.
    pub burst: u32,
    /// Requests that may come now.
    pub remaining: u32,
    /// Seconds until the quota is full again.
    pub full_in_s: u32,
}

/// The rate limits that a response shows.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// At least one.
    pub items: &'a [Item<'a>],
    /// Adds the standard headers.
    pub headers: bool,
    /// Adds the older headers.
    pub legacy_headers: bool,
}

impl<'a> Own<'a> {
    /// Limit, remaining and reset of the limit with the least left.
    fn tightest(self) -> [u64; 3] {
        let least = self.items.iter().min_by_key(|item| item.remaining);
        least.map_or([0; 3], |item| [item.burst.into(), item.remaining.into(), item.full_in_s.into()])
    }

    /// Returns whether the proxy writes a header of this name itself or merges it with the upstream's.
    pub fn merges(self, name: &str) -> bool {
        self.place(name).is_some()
    }

    fn place(self, name: &str) -> Option<(Family, usize)> {
        if !matches!(name.as_bytes().first(), Some(b'r' | b'R' | b'x' | b'X')) {
            return None;
        }
        let is = |other: &&str| name.eq_ignore_ascii_case(other);
        let lists = || LISTS.iter().position(is).map(|index| (Family::Lists, index));
        let older = || OLDER.iter().position(is).map(|index| (Family::Older, index));
        let legacy = || LEGACY.iter().position(is).map(|index| (Family::Legacy, index));
        let ours = self.headers.then(|| lists().or_else(older)).flatten();
        ours.or_else(|| self.legacy_headers.then(legacy).flatten())
    }
}

/// Headers that are merged together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Lists,
    Older,
    Legacy,
}

const LISTS: [&str; 2] = ["RateLimit", "RateLimit-Policy"];
/// From drafts before the seventh, one number each. Written only if the upstream's response has them.
const OLDER: [&str; 3] = ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"];
const LEGACY: [&str; 3] = ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"];

/// Returns the names of all headers that may be merged.
pub fn names() -> impl Iterator<Item = &'static str> {
    LISTS.into_iter().chain(OLDER).chain(LEGACY)
}

/// The rate limit headers of the upstream's response. Empty, and then free, for nearly every upstream.
#[derive(Debug, Default)]
pub struct Upstream<'a> {
    lines: Vec<(Family, usize, &'a [u8])>,
}

impl<'a> Upstream<'a> {
    /// Takes a header that is to be merged; returns false for other headers.
    pub fn take(&mut self, own: Own<'_>, name: &str, value: &'a [u8]) -> bool {
        let Some((family, index)) = own.place(name) else { return false };
        self.lines.push((family, index, value));
        true
    }

    fn of(&self, family: Family, index: usize) -> impl Iterator<Item = &'a [u8]> {
        self.lines.iter().filter(move |line| (line.0, line.1) == (family, index)).map(|line| line.2)
    }
}

/// Calls `field` with each header of the response, once, merged with the rate limit headers of the upstream's response
/// ([`Upstream::default`] for Outrigger's own responses). Lists contain the items of both; of two items with the same name,
/// and of two numbers, the one with less left wins.
pub fn merged(own: Own<'_>, upstream: &Upstream<'_>, mut field: impl FnMut(&'static str, &[u8])) {
    thread_local! {
        static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    TEXT.with_borrow_mut(|text| {
        if own.headers {
            write_lists(own, upstream, text, &mut field);
            if upstream.lines.iter().any(|line| line.0 == Family::Older) {
                write_numbers(own, upstream, (Family::Older, OLDER), text, &mut field);
            }
        }
        if own.legacy_headers {
            write_numbers(own, upstream, (Family::Legacy, LEGACY), text, &mut field);
        }
    });
}

fn write_lists(own: Own<'_>, upstream: &Upstream<'_>, text: &mut Vec<u8>, field: &mut impl FnMut(&'static str, &[u8])) {
    let theirs = Theirs::of(own, upstream);
    if let Some(only) = theirs.only {
        // Not a list, so it replaces our items; its limit has less left.
        field("RateLimit", only);
    }
    text.clear();
    for item in &theirs.policies {
        separate(text);
        text.extend_from_slice(item);
    }
    for item in own.items.iter().filter(|item| !theirs.stands_for(item.name)) {
        separate(text);
        text.extend_from_slice(item.policy.as_bytes());
    }
    field("RateLimit-Policy", text);
    if theirs.only.is_some() {
        return;
    }
    text.clear();
    for item in &theirs.items {
        separate(text);
        text.extend_from_slice(item);
    }
    for item in own.items.iter().filter(|item| !theirs.stands_for(item.name)) {
        separate(text);
        text.push(b'"');
        text.extend_from_slice(item.name.as_bytes());
        text.extend_from_slice(b"\";r=");
        decimal(text, item.remaining.into());
        text.extend_from_slice(b";t=");
        decimal(text, item.full_in_s.into());
    }
    field("RateLimit", text);
}

/// The parts of the upstream's lists that are kept.
#[derive(Debug, Default)]
struct Theirs<'a> {
    items: Vec<&'a [u8]>,
    policies: Vec<&'a [u8]>,
    /// Names of upstream limits that replace ours.
    instead: Vec<&'a [u8]>,
    /// A `RateLimit` header in an older form, which is not a list, with less remaining than ours.
    only: Option<&'a [u8]>,
}

impl<'a> Theirs<'a> {
    fn of(own: Own<'_>, upstream: &Upstream<'a>) -> Self {
        let mut theirs = Self::default();
        if upstream.lines.is_empty() {
            return theirs;
        }
        let ours = |item: &[u8]| own.items.iter().find(|own| name_of(item) == Some(own.name.as_bytes()));
        for line in upstream.of(Family::Lists, 0) {
            match items(line) {
                Some(items) => theirs.items.extend(items),
                None => theirs.only = theirs.only.or(Some(line)),
            }
        }
        theirs.items.retain(|item| match ours(item) {
            None => true,
            Some(own) => {
                let stays = number_of(item, "r").is_some_and(|remaining| remaining <= own.remaining.into());
                theirs.instead.extend(name_of(item).filter(|_| stays));
                stays
            }
        });
        theirs.policies = upstream.of(Family::Lists, 1).filter_map(items).flatten().collect();
        theirs.policies.retain(|item| ours(item).is_none_or(|own| theirs.instead.contains(&own.name.as_bytes())));
        let [_, remaining, _] = own.tightest();
        let is_tighter = |line: &&[u8]| number_of(line, "remaining").is_some_and(|theirs| theirs <= remaining);
        theirs.only = theirs.only.filter(|line| theirs.items.is_empty() && is_tighter(line));
        theirs
    }

    fn stands_for(&self, name: &str) -> bool {
        self.instead.contains(&name.as_bytes())
    }
}

/// Writes limit, remaining and reset: the upstream's or ours, depending on which leaves the client less.
fn write_numbers(
    own: Own<'_>,
    upstream: &Upstream<'_>,
    (family, names): (Family, [&'static str; 3]),
    text: &mut Vec<u8>,
    field: &mut impl FnMut(&'static str, &[u8]),
) {
    let ours = own.tightest();
    let number = |index: usize| upstream.of(family, index).filter_map(leading_number).min();
    // Without the number of remaining requests, the limit is an upper bound.
    let is_theirs = number(1).or_else(|| number(0)).is_some_and(|remaining| remaining <= ours[1]);
    for (index, name) in names.into_iter().enumerate() {
        if !is_theirs {
            text.clear();
            decimal(text, ours[index]);
            field(name, text);
        } else if let Some(line) =
            upstream.of(family, index).min_by_key(|line| leading_number(line).unwrap_or(u64::MAX))
        {
            field(name, line);
        }
    }
}

fn separate(text: &mut Vec<u8>) {
    if !text.is_empty() {
        text.extend_from_slice(b", ");
    }
}

/// Appends a decimal number. Avoids `fmt` because it runs for every request.
pub fn decimal(text: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A remainder of ten is one digit.
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the headers that a client gets when the upstream sends these and 5 of 100 remain of our limit `medium`.
    fn merge(upstream: &[(&str, &str)]) -> Vec<(String, String)> {
        let policy = policy("medium", 100, 60);
        let items = [Item { name: "medium", policy: &policy, burst: 100, remaining: 5, full_in_s: 57 }];
        let own = Own { items: &items, headers: true, legacy_headers: true };
        let mut taken = Upstream::default();
        for (name, value) in upstream {
            assert!(taken.take(own, name, value.as_bytes()), "{name}");
        }
        let mut written = Vec::new();
        merged(own, &taken, |name, value| written.push((name.to_owned(), String::from_utf8_lossy(value).into_owned())));
        written
    }

    fn merged_value(upstream: &[(&str, &str)], name: &str) -> String {
        let written = merge(upstream);
        let values: Vec<&str> = written.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect();
        assert!(values.len() == 1, "{name} once: {written:?}");
        values[0].to_owned()
    }

    const OURS: &str = "\"medium\";r=5;t=57";
    const OUR_POLICY: &str = "\"medium\";q=100;w=60";

    #[test]
    fn lists_have_the_items_of_both() {
        let app = [("ratelimit", "\"app\";r=2;t=9"), ("RateLimit-Policy", "\"app\";q=10;w=60")];
        assert_eq!(merged_value(&app, "RateLimit"), format!("\"app\";r=2;t=9, {OURS}"));
        assert_eq!(merged_value(&app, "RateLimit-Policy"), format!("\"app\";q=10;w=60, {OUR_POLICY}"));
        let lines = [("RateLimit", "\"a,\\\"b\";r=2"), ("RateLimit", "token;r=3, 10;w=60")];
        assert_eq!(merged_value(&lines, "RateLimit"), format!("\"a,\\\"b\";r=2, token;r=3, 10;w=60, {OURS}"));
        assert_eq!(merged_value(&[], "RateLimit"), OURS);
    }

    #[test]
    fn of_two_items_with_one_name_the_tighter_stays_with_its_policy() {
        let policy = ("RateLimit-Policy", "\"medium\";q=7;w=1");
        let tighter = [("RateLimit", "\"medium\";r=4;t=1"), policy];
        assert_eq!(merged_value(&tighter, "RateLimit"), "\"medium\";r=4;t=1");
        assert_eq!(merged_value(&tighter, "RateLimit-Policy"), "\"medium\";q=7;w=1");
        let looser = [("RateLimit", "\"medium\";r=6;t=1"), policy];
        assert_eq!(merged_value(&looser, "RateLimit"), OURS);
        assert_eq!(merged_value(&looser, "RateLimit-Policy"), OUR_POLICY);
    }

    #[test]
    fn a_form_that_is_no_list_stands_alone_if_it_is_tighter() {
        let draft_7 = |remaining: u32| [("RateLimit", format!("limit=10, remaining={remaining}, reset=9"))];
        let value = |remaining| {
            let lines = draft_7(remaining);
            merged_value(&lines.each_ref().map(|(name, value)| (*name, value.as_str())), "RateLimit")
        };
        assert_eq!(value(2), "limit=10, remaining=2, reset=9");
        assert_eq!(value(50), OURS);
        for nonsense in ["", "\"open", "a b", "(1 2);r=1", "remaining=x", "\"a\" \"b\""] {
            assert_eq!(merged_value(&[("RateLimit", nonsense)], "RateLimit"), OURS, "{nonsense}");
        }
    }

    #[test]
    fn numbers_come_from_the_tighter_limit() {
        for prefix in ["X-RateLimit", "RateLimit"] {
            let value = |upstream: &[(&str, &str)], name: &str| {
                let names: Vec<String> = upstream.iter().map(|(name, _)| format!("{prefix}-{name}")).collect();
                let upstream: Vec<_> =
                    names.iter().zip(upstream).map(|(name, (_, value))| (name.as_str(), *value)).collect();
                merged_value(&upstream, &format!("{prefix}-{name}"))
            };
            let all = |remaining| [("Limit", "10"), ("Remaining", remaining), ("Reset", "1790000000")];
            for (remaining, expected) in [
                ("2", ["10", "2", "1790000000"]),
                ("5", ["10", "5", "1790000000"]),
                ("50", ["100", "5", "57"]),
                ("unlimited", ["100", "5", "57"]),
            ] {
                // An unreadable number does not raise ours; a limit alone is an upper bound of what remains.
                let upstream = if remaining == "unlimited" {
                    [("Limit", "999"), ("Remaining", "x"), ("Reset", "1")]
                } else {
                    all(remaining)
                };
                assert_eq!(["Limit", "Remaining", "Reset"].map(|name| value(&upstream, name)), expected, "{remaining}");
            }
            assert_eq!(value(&[("Remaining", "9"), ("Remaining", "2")], "Remaining"), "2");
            assert_eq!(value(&[("Limit", "3, 3;w=60")], "Limit"), "3, 3;w=60");
        }
        assert!(!merge(&[]).iter().any(|(name, _)| name.starts_with("RateLimit-R")), "no older form by ourselves");
    }

    proptest! {
        #[test]
        fn each_name_is_written_once_for_any_upstream_headers(
            lines in proptest::collection::vec((0..8_usize, "[ -~]{0,30}|\"[a-z]{1,6}\";r=[0-9]{1,4}(, x;r=1)?"), 0..6),
        ) {
            let all: Vec<&str> = names().collect();
            let upstream: Vec<(&str, &str)> = lines.iter().map(|(name, value)| (all[*name], value.as_str())).collect();
            let written = merge(&upstream);
            let mut seen: Vec<&String> = written.iter().map(|(name, _)| name).collect();
            seen.sort_unstable();
            let count = seen.len();
            seen.dedup();
            prop_assert_eq!(count, seen.len());
            prop_assert!(written.iter().any(|(name, _)| name == "RateLimit"));
        }
    }

    #[test]
    fn writes_numbers_as_the_standard_library_does() {
        for number in [0, 7, 10, 99, 100, 12_345, u64::MAX] {
            let mut text = Vec::new();
            decimal(&mut text, number);
            assert_eq!(String::from_utf8(text).unwrap(), number.to_string());
        }
    }
}
