//! Finds the route that takes all requests of a later one, without comparing each route with each: there may be thousands.

use std::collections::HashMap;

use super::conditions::Conditions;
use super::pattern::Segment;

/// A segment of a path, in lower case and decoded; `None`: any.
type Key = Option<Box<[u8]>>;

/// Routes by the segments of their paths, then by host.
#[derive(Debug)]
pub struct Covering {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    next: HashMap<Key, usize>,
    /// The routes whose path ends here, in order. Those with one host cover only routes with the same host; the others are
    /// at `None`.
    routes: HashMap<Option<Box<str>>, Vec<usize>>,
}

impl Default for Covering {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

fn key(segment: &Segment) -> Key {
    match segment {
        Segment::Literal { decoded, .. } => Some(decoded.clone()),
        Segment::Any => None,
    }
}

impl Covering {
    /// Adds the route of this number. Numbers ascend.
    pub fn add(&mut self, conditions: &Conditions, number: usize) {
        let mut at = 0;
        for segment in &conditions.path.segments {
            let new = self.nodes.len();
            at = *self.nodes[at].next.entry(key(segment)).or_insert(new);
            if at == new {
                self.nodes.push(Node::default());
            }
        }
        let host = conditions.only_host().map(Box::from);
        self.nodes[at].routes.entry(host).or_default().push(number);
    }

    /// Returns the first route that `covers` says takes all requests of `conditions`; asks only about those that may.
    pub fn first(&self, conditions: &Conditions, covers: impl Fn(usize) -> bool) -> Option<usize> {
        let host: Option<Box<str>> = conditions.any_host().map(Box::from);
        let mut first = None;
        let mut look = |nodes: &[usize]| {
            for node in nodes {
                let routes = &self.nodes[*node].routes;
                let with_host = host.as_ref().and_then(|_| routes.get(&host));
                for numbers in routes.get(&None).into_iter().chain(with_host) {
                    let found = numbers.iter().copied().find(|number| covers(*number));
                    first = first.into_iter().chain(found).min();
                }
            }
        };
        // A path covers others of its length, or, with "/**", longer ones.
        let mut nodes = vec![0];
        look(&nodes);
        for segment in &conditions.path.segments {
            let own = key(segment);
            let keys = [None, own].into_iter().take(if matches!(segment, Segment::Any) { 1 } else { 2 });
            let next = |key: Key| {
                nodes.iter().filter_map(|node| self.nodes[*node].next.get(&key).copied()).collect::<Vec<_>>()
            };
            nodes = keys.flat_map(next).collect();
            look(&nodes);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sections::routes;

    fn conditions(path: &str, hosts: &[&str], methods: &[&str]) -> Conditions {
        let text = format!("name = \"x\"\npath = {path:?}\nhosts = {hosts:?}\nmethods = {methods:?}");
        Conditions::compile(&toml::from_str::<routes::Route>(&text).unwrap()).unwrap()
    }

    /// The index finds what a comparison with every earlier route finds.
    #[test]
    fn finds_the_first_of_all_that_cover() {
        let mut all = Vec::new();
        for path in ["/**", "/a/{id}/**", "/a/b", "/A/B", "/a/{id}", "/{x}/{y}", "/a/b/c", "/a/**", "/ab/{id}", "/"] {
            for hosts in [&[][..], &["a.example"], &["*.example"], &["a.example", "b.example"], &["b.example"]] {
                for methods in [&[][..], &["GET"], &["GET", "POST"]] {
                    all.push(conditions(path, hosts, methods));
                }
            }
        }
        // In several orders.
        let count = all.len();
        for step in [1, 7, 11, count - 1] {
            let mut index = Covering::default();
            let mut added: Vec<&Conditions> = Vec::new();
            for at in (0..count).map(|n| n * step % count) {
                let one = &all[at];
                let slow = added.iter().position(|earlier| earlier.covers(one));
                assert_eq!(index.first(one, |number| added[number].covers(one)), slow, "{one:?}");
                index.add(one, added.len());
                added.push(one);
            }
        }
    }

    #[test]
    fn asks_about_few_of_many_routes() {
        let mut index = Covering::default();
        for n in 0..1_000 {
            let by_path = conditions(&format!("/api/v1/things{n}/{{id}}"), &[], &[]);
            let by_host = conditions("/**", &[&format!("t{n}.example")], &[]);
            for one in [by_path, by_host] {
                let asked = std::cell::Cell::new(0);
                let found = index.first(&one, |_| {
                    asked.set(asked.get() + 1);
                    false
                });
                assert_eq!((found, asked.get()), (None, 0));
                index.add(&one, n);
            }
        }
    }
}
