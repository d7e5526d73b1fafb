//! The samples since the last decision, and their means.

use super::{ALLOWED_NS, BAND, TARGET};

/// The means of a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) in_flight: f64,
    pub(super) stretch: f64,
    /// Relative standard error of `stretch`.
    pub(super) error: f64,
    /// Target stretch.
    pub(super) target: f64,
    /// Mean latency in nanoseconds.
    pub(super) latency: f64,
}

impl Point {
    /// The number of requests in flight that would give the target stretch.
    pub(super) fn wanted(&self) -> f64 {
        self.in_flight * self.target / self.stretch
    }

    pub(super) fn is_too_slow(&self, doubt: f64) -> bool {
        self.stretch > self.target * (1.0 + BAND) + doubt
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    pub(super) samples: f64,
    /// Samples since the last evaluation, and its time.
    pub(super) unseen: f64,
    pub(super) seen_at: u64,
    pub(super) timed_out: f64,
    pub(super) in_flight: f64,
    pub(super) took: f64,
    pub(super) usual: f64,
    pub(super) usual_squares: f64,
    pub(super) took_squares: f64,
    pub(super) took_usual: f64,
}

impl Window {
    /// Variance of one sample's stretch relative to its square, weighted towards slow classes.
    pub(super) fn noise(&self) -> f64 {
        let stretch = self.took / self.usual;
        let squares = self.took_squares - 2.0 * stretch * self.took_usual + stretch * stretch * self.usual_squares;
        let of_all = squares.max(0.0) * self.samples / (self.samples - 1.0).max(1.0);
        of_all / (self.usual_squares * stretch * stretch).max(f64::MIN_POSITIVE)
    }

    pub(super) fn point(&self, noise: f64) -> Point {
        // Slow classes weigh more, so the effective number of samples is smaller.
        let effective = self.usual * self.usual / self.usual_squares.max(f64::MIN_POSITIVE);
        Point {
            in_flight: self.in_flight / self.samples,
            stretch: (self.took / self.usual).clamp(0.01, 1e6),
            error: (noise / effective.max(1.0)).sqrt(),
            target: TARGET.max(1.0 + self.samples * ALLOWED_NS / self.usual),
            latency: self.took / self.samples,
        }
    }
}
