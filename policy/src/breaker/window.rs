//! The sliding window of recent calls, over which rates are computed.

use super::evidence::Counts;
use super::{MOST_CALLS, Span, nanoseconds};

/// The number of buckets of a window of time: it slides in steps of a tenth.
const BUCKETS: usize = 10;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) calls: u32,
    pub(super) failed: u32,
    pub(super) slow: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) client: u64,
    pub(super) failed: bool,
    pub(super) slow: bool,
}

/// A tenth of a window of time.
#[derive(Clone, Debug, Default)]
pub(super) struct Bucket {
    number: u64,
    totals: Totals,
    failed: Counts,
    slow: Counts,
}

#[derive(Clone, Debug)]
pub(super) enum Window {
    Calls { ring: Vec<Call>, next: usize, most: usize, totals: Totals },
    Time { length: u64, buckets: Box<[Bucket; BUCKETS]> },
}

impl Window {
    pub(super) fn new(span: Span) -> Self {
        match span {
            Span::Calls(most) => Self::Calls {
                ring: Vec::new(),
                next: 0,
                most: most.clamp(1, MOST_CALLS) as usize,
                totals: Totals::default(),
            },
            Span::Time(time) => {
                Self::Time { length: (nanoseconds(time) / BUCKETS as u64).max(1), buckets: Box::default() }
            }
        }
    }

    pub(super) fn add(&mut self, now: u64, call: Call) {
        match self {
            Self::Calls { ring, next, most, totals } => {
                if ring.len() < *most {
                    ring.push(call);
                } else {
                    let oldest = std::mem::replace(&mut ring[*next], call);
                    totals.calls -= 1;
                    totals.failed -= u32::from(oldest.failed);
                    totals.slow -= u32::from(oldest.slow);
                    *next = (*next + 1) % *most;
                }
                totals.add(call);
            }
            Self::Time { length, buckets } => {
                let number = now / *length;
                let bucket = &mut buckets[(number % BUCKETS as u64) as usize];
                if bucket.number != number {
                    *bucket = Bucket { number, ..Bucket::default() };
                }
                bucket.totals.add(call);
                if call.failed {
                    bucket.failed.add(call.client);
                }
                if call.slow {
                    bucket.slow.add(call.client);
                }
            }
        }
    }

    pub(super) fn totals(&self, now: u64) -> Totals {
        match self {
            Self::Calls { totals, .. } => *totals,
            Self::Time { length, buckets } => {
                recent(&buckets[..], now / *length).fold(Totals::default(), |sum, bucket| Totals {
                    calls: sum.calls.saturating_add(bucket.totals.calls),
                    failed: sum.failed.saturating_add(bucket.totals.failed),
                    slow: sum.slow.saturating_add(bucket.totals.slow),
                })
            }
        }
    }

    /// Returns the failed calls by client.
    pub(super) fn failed(&self, now: u64) -> Counts {
        self.counts(now, |call| call.failed, |bucket| &bucket.failed)
    }

    /// Returns the slow calls by client.
    pub(super) fn slow(&self, now: u64) -> Counts {
        self.counts(now, |call| call.slow, |bucket| &bucket.slow)
    }

    fn counts(&self, now: u64, is_one: impl Fn(&Call) -> bool, of: impl Fn(&Bucket) -> &Counts) -> Counts {
        let mut counts = Counts::default();
        match self {
            Self::Calls { ring, .. } => {
                ring.iter().filter(|call| is_one(call)).for_each(|call| counts.add(call.client));
            }
            Self::Time { length, buckets } => {
                recent(&buckets[..], now / *length).for_each(|bucket| counts.merge(of(bucket)));
            }
        }
        counts
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::Calls { ring, next, totals, .. } => {
                ring.clear();
                (*next, *totals) = (0, Totals::default());
            }
            Self::Time { buckets, .. } => **buckets = Default::default(),
        }
    }
}

/// Returns the buckets of the window that ends with bucket `number`.
fn recent(buckets: &[Bucket], number: u64) -> impl Iterator<Item = &Bucket> {
    buckets.iter().filter(move |bucket| number.saturating_sub(bucket.number) < BUCKETS as u64)
}

impl Totals {
    fn add(&mut self, call: Call) {
        self.calls = self.calls.saturating_add(1);
        self.failed = self.failed.saturating_add(call.failed.into());
        self.slow = self.slow.saturating_add(call.slow.into());
    }
}
