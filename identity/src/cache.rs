//! A bounded cache of two generations: values in use stay, others are dropped with their generation.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// Holds at most `2 * most_each` values. When the young generation is full it becomes the old one, and the previous old one
/// is dropped; a lookup moves a value from the old to the young generation. No sorting or searching is needed, and a flood
/// of new values displaces only those that are not looked up in the meantime.
///
/// Keys are hashes keyed with a secret: equal keys mean equal values.
#[derive(Debug)]
pub struct Generations<V> {
    young: HashMap<u128, V, RandomState>,
    old: HashMap<u128, V, RandomState>,
    most_each: usize,
}

impl<V: Clone> Generations<V> {
    /// An empty one.
    pub fn new(most_each: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), most_each: most_each.max(1) }
    }

    /// Returns the value, if it is still cached.
    pub fn get(&mut self, key: u128) -> Option<V> {
        if let Some(value) = self.young.get(&key) {
            return Some(value.clone());
        }
        let value = self.old.remove(&key)?;
        self.put(key, value.clone());
        Some(value)
    }

    /// Stores a value, replacing an earlier one.
    pub fn put(&mut self, key: u128, value: V) {
        if self.young.len() >= self.most_each && !self.young.contains_key(&key) {
            std::mem::swap(&mut self.young, &mut self.old);
            // Reuses its memory.
            self.young.clear();
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_in_use_outlive_any_flood() {
        let mut cache = Generations::new(100);
        cache.put(0, "kept");
        for key in 1..1_000_000 {
            cache.put(key, "flood");
            assert!(cache.len() <= 200);
            if key % 50 == 0 {
                assert_eq!(cache.get(0), Some("kept"), "{key}");
            }
        }
        assert_eq!(cache.get(1), None);
        assert_eq!(cache.get(999_999), Some("flood"));
    }

    #[test]
    fn a_value_is_replaced_wherever_it_is() {
        let mut cache = Generations::new(1);
        cache.put(1, "a");
        cache.put(2, "b");
        cache.put(1, "c");
        assert_eq!((cache.get(1), cache.len()), (Some("c"), 2));
        assert!(!cache.is_empty());
    }
}
