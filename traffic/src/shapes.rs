//! The kinds of requests of a file, in a bounded table.
//!
//! Shapes of a method and a route are as many as the configuration has. Shapes with words of the request's path, or with the conditions on
//! hosts and headers that it meets, are not: there are at most [`MOST_WORDS`] of them in a file, and one address adds at most
//! [`MOST_OF_ADDRESS`]. A request beyond that is recorded with its route only. So a client that sends ever new paths keeps no other
//! client's paths from being recorded.

use std::collections::HashMap;
use std::fmt::Write;

use crate::encode::Encoder;
use crate::request::Shape;
use crate::{MOST_SHAPES, MOST_TEXT_BYTES, MOST_TEXTS};

/// Maximum number of shapes with words of requests.
pub const MOST_WORDS: usize = 8_192;
/// Maximum number of them that one address adds to a file.
pub const MOST_OF_ADDRESS: u16 = 64;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A shape, as texts.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    /// The method.
    pub method: &'a str,
    /// The host.
    pub host: &'a str,
    /// The path as a template.
    pub path: &'a str,
    /// The name of the route.
    pub route: &'a str,
    /// Conditions on headers.
    pub headers: &'a str,
}

/// The texts and shapes of the file that is being written.
#[derive(Debug, Default)]
pub struct Shapes {
    texts: Map<Box<str>, u32>,
    shapes: Map<Box<str>, u32>,
    by_address: Map<u64, u16>,
    words: usize,
    key: String,
}

impl Shapes {
    /// For another file.
    pub fn clear(&mut self) {
        let key = std::mem::take(&mut self.key);
        *self = Self { key, ..Self::default() };
    }

    /// The number of shapes.
    pub fn len(&self) -> usize {
        self.shapes.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }

    /// The number of a text, which is added if it is new. `None`: the table is full, or the text is too long.
    pub fn text(&mut self, text: &str, out: &mut Encoder) -> Option<u32> {
        if let Some(number) = self.texts.get(text) {
            return Some(*number);
        }
        if self.texts.len() >= MOST_TEXTS || text.len() > MOST_TEXT_BYTES {
            return None;
        }
        let number = self.texts.len() as u32;
        self.texts.insert(text.into(), number);
        out.text(text);
        Some(number)
    }

    /// The number of a shape, which is added if it is new. `by`: the address of the client, if there is more in it than a method, a path of
    /// the configuration and a route; such a shape may be recorded with its method and route only. `None`: the table is full.
    pub fn shape(&mut self, described: Described<'_>, by: Option<u64>, out: &mut Encoder) -> Option<u32> {
        let Described { method, host, path, route, headers } = described;
        self.key.clear();
        // Writing to a string cannot fail.
        let _ = write!(self.key, "{method}\n{host}\n{path}\n{route}\n{headers}");
        if let Some(number) = self.shapes.get(self.key.as_str()) {
            return Some(*number);
        }
        if let Some(address) = by {
            let used = self.by_address.get(&address).copied().unwrap_or_default();
            if self.words >= MOST_WORDS || used >= MOST_OF_ADDRESS || path.len() > MOST_TEXT_BYTES {
                return self.shape(Described { host: "", path: "", headers: "", ..described }, None, out);
            }
        }
        if self.shapes.len() >= MOST_SHAPES {
            return None;
        }
        let mut text = |text: &str| self.text(text, out);
        let shape = Shape {
            method: text(method)?,
            host: text(host)?,
            path: text(path)?,
            route: text(route)?,
            headers: text(headers)?,
        };
        if let Some(address) = by {
            *self.by_address.entry(address).or_default() += 1;
            self.words += 1;
        }
        out.shape(shape);
        let number = self.shapes.len() as u32;
        self.shapes.insert(self.key.as_str().into(), number);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Described<'_> = Described { method: "GET", host: "", path: "/", route: "default", headers: "" };

    #[test]
    fn an_attacker_with_endless_paths_takes_no_shape_from_others() {
        let (mut shapes, mut out) = (Shapes::default(), Encoder::new(0));
        let mut ask = |path: &str, address| shapes.shape(Described { path, ..GET }, Some(address), &mut out).unwrap();
        let early = ask("/victim/early", 2);
        let of_attacker: std::collections::HashSet<u32> =
            (0..100_000).map(|n| ask(&format!("/attack/{n}"), 1)).collect();
        assert_eq!(of_attacker.len(), usize::from(MOST_OF_ADDRESS) + 1, "one is without a path");
        let headers: Vec<String> = (0..100_000).map(|n| format!("x-{n}")).collect();
        let mut meet = |headers, address| shapes.shape(Described { headers, ..GET }, Some(address), &mut out).unwrap();
        let of_other: std::collections::HashSet<u32> = headers.iter().map(|headers| meet(headers, 3)).collect();
        assert_eq!(of_other.len(), usize::from(MOST_OF_ADDRESS) + 1, "one is without conditions");
        let mut ask = |path: &str, address| shapes.shape(Described { path, ..GET }, Some(address), &mut out).unwrap();
        assert_eq!(ask("/victim/early", 2), early, "it keeps its shape");
        let late = ask("/victim/late", 2);
        assert!(!of_attacker.contains(&late), "and gets new ones");
    }

    #[test]
    fn attackers_at_many_addresses_fill_their_part_only() {
        let (mut shapes, mut out) = (Shapes::default(), Encoder::new(0));
        for n in 0..2 * MOST_WORDS as u64 {
            let path = format!("/attack/{n}");
            assert!(shapes.shape(Described { path: &path, ..GET }, Some(n), &mut out).is_some());
        }
        assert_eq!(shapes.len(), MOST_WORDS + 1);
        let of_route = Described { path: "/shop/~", route: "shop", ..GET };
        let number = shapes.shape(of_route, None, &mut out).unwrap();
        assert_eq!(number as usize, MOST_WORDS + 1, "a path of the configuration has its own shape");
    }
}
