//! A bounded memory in two generations: what is used stays, what is not goes when its generation does.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// At most `2 * most_each` values. When the young generation is full it becomes the old one, and what the old one held
/// is forgotten; a value of the old one that is asked for becomes young again. So nothing is ever sorted or searched,
/// and who floods it displaces only what nobody asked for in the meantime.
///
/// Its keys are hashes already, keyed with a secret: two that are the same mean the same.
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

    /// The value that was put there, if it is still remembered.
    pub fn get(&mut self, key: u128) -> Option<V> {
        if let Some(value) = self.young.get(&key) {
            return Some(value.clone());
        }
        let value = self.old.remove(&key)?;
        self.put(key, value.clone());
        Some(value)
    }

    /// Remembers a value, in place of the one that was there.
    pub fn put(&mut self, key: u128, value: V) {
        if self.young.len() >= self.most_each && !self.young.contains_key(&key) {
            std::mem::swap(&mut self.young, &mut self.old);
            // Its memory is used again.
            self.young.clear();
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_outlives_any_flood() {
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
