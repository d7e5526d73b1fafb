//! Other algorithms, as their sources describe them, with their usual constants.

use outrigger_policy::concurrency::Sample;

use outrigger_algorithms::simulator::{Law, SECOND};

const MAX: f64 = 2000.0; // The same as for Outrigger.

fn took(now: u64, sample: Sample) -> f64 {
    now.saturating_sub(sample.started).max(1) as f64
}

/// A fixed limit, configured with knowledge of the capacity.
pub struct Fixed(pub u32);

impl Law for Fixed {
    fn limit(&self) -> u32 {
        self.0
    }
    fn record(&mut self, _: u64, _: Sample) {}
}

/// After Netflix `AIMDLimit`: plus one per response while the limit is in use, × 0.9 after a slow response. The threshold
/// must be configured.
pub struct Aimd {
    pub limit: f64,
    pub slow: f64,
}

impl Law for Aimd {
    fn limit(&self) -> u32 {
        self.limit as u32
    }
    fn record(&mut self, now: u64, sample: Sample) {
        if took(now, sample) > self.slow {
            self.limit *= 0.9;
        } else if f64::from(sample.in_flight) * 2.0 >= self.limit {
            self.limit += 1.0;
        }
        self.limit = self.limit.clamp(1.0, MAX);
    }
}

/// After Netflix `VegasLimit`: alpha 3 log10(limit), beta 6 log10(limit), the minimum re-measured every 30 × limit samples.
pub struct Vegas {
    pub limit: f64,
    pub least: f64,
    pub samples: f64,
}

impl Law for Vegas {
    fn limit(&self) -> u32 {
        self.limit as u32
    }
    fn record(&mut self, now: u64, sample: Sample) {
        let took = took(now, sample);
        self.samples += 1.0;
        if self.samples > 30.0 * self.limit {
            (self.samples, self.least) = (0.0, took);
            return;
        }
        self.least = self.least.min(took);
        if f64::from(sample.in_flight) * 2.0 < self.limit {
            return;
        }
        let step = self.limit.log10().max(1.0);
        let queue = (self.limit * (1.0 - self.least / took)).ceil();
        if queue <= step {
            self.limit += 6.0 * step;
        } else if queue < 3.0 * step {
            self.limit += step;
        } else if queue > 6.0 * step {
            self.limit -= step;
        }
        self.limit = self.limit.clamp(1.0, MAX);
    }
}

/// After Netflix `Gradient2Limit`: long-term mean over 600 samples, tolerance 1.5, queue sqrt(limit), smoothing 0.2.
pub struct Gradient2 {
    pub limit: f64,
    pub long: f64,
}

impl Law for Gradient2 {
    fn limit(&self) -> u32 {
        self.limit as u32
    }
    fn record(&mut self, now: u64, sample: Sample) {
        let short = took(now, sample);
        self.long = if self.long == 0.0 { short } else { self.long + (short - self.long) * 2.0 / 601.0 };
        if self.long / short > 2.0 {
            self.long *= 0.95;
        }
        if f64::from(sample.in_flight) * 2.0 < self.limit {
            return;
        }
        let gradient = (1.5 * self.long / short).clamp(0.5, 1.0);
        let new = self.limit * gradient + self.limit.sqrt();
        self.limit = (self.limit * 0.8 + new * 0.2).clamp(1.0, MAX);
    }
}

/// A PI controller that keeps the mean latency at the configured target (1.2 × service time), with one step per 20
/// samples.
pub struct Pid {
    pub limit: f64,
    pub wanted: f64,
    pub sum: f64,
    pub samples: f64,
    pub before: f64,
}

impl Law for Pid {
    fn limit(&self) -> u32 {
        self.limit as u32
    }
    fn record(&mut self, now: u64, sample: Sample) {
        self.sum += took(now, sample);
        self.samples += 1.0;
        if self.samples >= 20.0 {
            let error = (1.0 - self.sum / self.samples / self.wanted).max(-1.0);
            self.limit *= (0.3 * (error - self.before) + 0.1 * error).exp();
            self.limit = self.limit.clamp(1.0, MAX);
            (self.sum, self.samples, self.before) = (0.0, 0.0, error);
        }
    }
}

/// Envoy's gradient filter: every 60 s a limit of 3 until 50 samples gave the minimum latency; otherwise, here every 50
/// samples, limit × (minimum × 1.25 / p90), the factor within 0.5 and 2, plus the square root of the limit.
pub struct Envoy {
    pub limit: f64,
    pub least: f64,
    pub measuring: bool,
    pub until: u64,
    pub samples: Vec<f64>,
}

impl Law for Envoy {
    fn limit(&self) -> u32 {
        if self.measuring { 3 } else { self.limit as u32 }
    }
    fn record(&mut self, now: u64, sample: Sample) {
        let measuring_since = self.until;
        if self.measuring && sample.started < measuring_since {
            return;
        }
        self.samples.push(took(now, sample));
        let p90 = |samples: &mut Vec<f64>| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() * 9 / 10]
        };
        if self.measuring {
            if self.samples.len() >= 50 {
                self.least = p90(&mut self.samples);
                self.samples.clear();
                (self.measuring, self.until) = (false, now + 60 * SECOND);
            }
        } else if now >= self.until {
            (self.measuring, self.until) = (true, now);
            self.samples.clear();
        } else if self.samples.len() >= 50 {
            let gradient = (self.least * 1.25 / p90(&mut self.samples)).clamp(0.5, 2.0);
            self.limit = (self.limit * gradient + self.limit.sqrt()).clamp(3.0, MAX);
            self.samples.clear();
        }
    }
}
