//! Memory for request bodies that are buffered until the app gets them, and for those that HTTP/2 streams have not read.
//!
//! All of them share `client.body_memory`. An address may hold at most half of what is free: alone it gets a third of
//! all. When others come and less is free, it is above its threshold, gets no more, and its stalled uploads are
//! aborted. So with `n` greedy addresses a share of `1 / (1 + n/2)` stays free for the next one (dynamic thresholds:
//! Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM Transactions on
//! Networking 6(2), 1998).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use outrigger_metrics::{Declare, IntGauge, Result};

/// A buffer up to this size is part of what a connection or a stream costs.
const FREE_BYTES: usize = 4 << 10;
/// An address may hold as much as is free, divided by this.
const PART: usize = 2;

/// Metrics of request bodies' memory.
#[derive(Debug)]
pub struct BodyMemoryMetrics {
    /// Memory in use, in bytes.
    pub bytes: IntGauge,
}

impl BodyMemoryMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Connections and memory");
        Ok(Self {
            bytes: area.when("Is there room? At its bound, uploads get 503.").gauge(
                "outrigger_body_memory_bytes",
                "Memory for buffered request bodies, at most client.body_memory.",
            )?,
        })
    }
}

/// The memory that all request bodies hold.
#[derive(Debug, Default)]
pub struct BodyMemory(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// Only addresses that hold memory.
    by_address: HashMap<u64, usize, RandomState>,
}

impl BodyMemory {
    /// Creates an empty share for a request from this address.
    pub fn share(self: &Arc<Self>, address_id: u64) -> BodyShare {
        BodyShare { memory: Arc::clone(self), address_id, bytes: 0 }
    }

    /// Returns the memory in use, in bytes.
    pub fn held(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // A panic with the lock held leaves a number that is off by one request at worst.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory of one request; released when dropped.
#[derive(Debug)]
pub struct BodyShare {
    memory: Arc<BodyMemory>,
    address_id: u64,
    bytes: usize,
}

impl BodyShare {
    /// Takes what a buffer of this capacity needs, of `most` in total. Returns false, and takes no more, at the limit.
    #[must_use]
    pub fn hold(&mut self, capacity: usize, most: usize) -> bool {
        let needed = needed(capacity);
        needed <= self.bytes || self.grow(needed - self.bytes, most)
    }

    /// Takes `bytes` more, of `most` in total. Returns false, and takes no memory, at the limit.
    #[must_use]
    pub fn grow(&mut self, bytes: usize, most: usize) -> bool {
        let mut held = self.memory.lock();
        let free = most.saturating_sub(held.bytes);
        let of_address = held.by_address.get(&self.address_id).copied().unwrap_or_default();
        if of_address.saturating_add(bytes) > free / PART {
            return false;
        }
        held.bytes += bytes;
        held.by_address.insert(self.address_id, of_address + bytes);
        self.bytes += bytes;
        true
    }

    /// Returns whether its address holds more than its threshold, because others have taken memory since.
    pub fn is_above_threshold(&self, most: usize) -> bool {
        let held = self.memory.lock();
        let of_address = held.by_address.get(&self.address_id).copied().unwrap_or_default();
        of_address > most.saturating_sub(held.bytes) / PART
    }

    /// Releases all of it.
    pub fn release(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut held = self.memory.lock();
        held.bytes = held.bytes.saturating_sub(self.bytes);
        if let Some(of_address) = held.by_address.get_mut(&self.address_id) {
            *of_address = of_address.saturating_sub(self.bytes);
            if *of_address == 0 {
                held.by_address.remove(&self.address_id);
            }
        }
        self.bytes = 0;
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        self.release();
    }
}

/// The memory that a buffer of this capacity takes from the table.
pub fn needed(capacity: usize) -> usize {
    // The allocator rounds up, by an eighth at most.
    let holds = capacity / 8 * 9;
    if holds > FREE_BYTES { holds } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 9000;

    /// Takes all that it can get.
    fn greedy(memory: &Arc<BodyMemory>, address: u64) -> BodyShare {
        let mut share = memory.share(address);
        while share.grow(1, MOST) {}
        share
    }

    #[test]
    fn one_address_gets_a_third_and_gives_it_back() {
        let memory = Arc::new(BodyMemory::default());
        let first = greedy(&memory, 1);
        assert_eq!(memory.held(), MOST / 3);
        assert!(!memory.share(1).grow(1, MOST), "in another request neither");
        assert!(memory.share(2).grow(MOST / 3, MOST), "another address is not touched");
        drop(first);
        assert_eq!((memory.held(), memory.lock().by_address.len()), (0, 0));
    }

    #[test]
    fn greedy_addresses_leave_memory_for_the_next() {
        let memory = Arc::new(BodyMemory::default());
        let mut uploads: Vec<BodyShare> = Vec::new();
        for _ in 0..200 {
            for address in 0..20 {
                let mut upload = memory.share(address);
                if upload.grow(50, MOST) {
                    uploads.push(upload);
                }
            }
            // All of them stall, so those of an address above its threshold are aborted, one after the other.
            let mut at = 0;
            while at < uploads.len() {
                if uploads[at].is_above_threshold(MOST) {
                    uploads.swap_remove(at);
                } else {
                    at += 1;
                }
            }
        }
        let (held, free) = (memory.held(), MOST - memory.held());
        // A share of 1 / (1 + 20/2), less the distance of up to one upload of each address from its threshold.
        assert!(free >= MOST / 11, "{held} of {MOST} are held");
        assert!(memory.share(1000).grow(free / PART, MOST));
    }

    #[test]
    fn lowering_the_bound_keeps_what_is_held_and_admits_no_more() {
        let memory = Arc::new(BodyMemory::default());
        let mut share = memory.share(1);
        assert!(share.grow(1000, MOST) && !share.grow(1, 500));
        assert_eq!(memory.held(), 1000);
    }
}
