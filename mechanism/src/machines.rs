//! The number of Machines that run this app, as far as is known.

use std::sync::atomic::{AtomicU32, Ordering};

/// The number of Machines, this one included.
#[derive(Debug)]
pub struct Machines {
    known: AtomicU32,
}

impl Default for Machines {
    /// Only this Machine.
    fn default() -> Self {
        Self { known: AtomicU32::new(1) }
    }
}

impl Machines {
    /// Returns the number; at least one.
    pub fn known(&self) -> u32 {
        self.known.load(Ordering::Relaxed)
    }

    /// Sets the number; at least one.
    pub fn set_known(&self, machines: u32) {
        self.known.store(machines.max(1), Ordering::Relaxed);
    }
}
