//! The faults and their times: random, and the same for a seed.

use std::time::Duration;

use fastrand::Rng;

/// A fault at one Machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The app is killed, and started again after this time.
    Kill(Duration),
    /// The app is stopped by a signal for this time: it takes connections, and responds to nothing.
    Hang(Duration),
    /// Each request takes this much longer, for this time.
    Slow(Duration, Duration),
    /// The app resets the connections of the next requests.
    Resets(u32),
    /// The proxy gets another configuration.
    Reload,
    /// An operator pauses requests for this time.
    Pause(Duration),
    /// The proxy is restarted, as in a deploy.
    Restart,
}

impl Fault {
    pub const NAMES: [&str; 7] = [
        "app killed, restarted after 0.2 to 3 s",
        "app hangs for 0.3 to 3 s",
        "app slower by 30 to 150 ms, for 1 to 4 s",
        "app resets the connections of 1 to 3 requests",
        "configuration reloaded",
        "requests paused for 0.2 to 2 s",
        "proxy restarted (the third one only)",
    ];

    pub fn name(self) -> &'static str {
        let number = match self {
            Self::Kill(_) => 0,
            Self::Hang(_) => 1,
            Self::Slow(..) => 2,
            Self::Resets(_) => 3,
            Self::Reload => 4,
            Self::Pause(_) => 5,
            Self::Restart => 6,
        };
        Self::NAMES[number]
    }

    /// Whether the app's connections break.
    pub fn breaks(self) -> bool {
        matches!(self, Self::Kill(_) | Self::Resets(_))
    }

    /// How long it lasts, approximately.
    fn length(self) -> Duration {
        match self {
            Self::Kill(length) | Self::Hang(length) | Self::Slow(_, length) | Self::Pause(length) => length,
            Self::Resets(_) => RESETS_LAST,
            Self::Reload => Duration::ZERO,
            Self::Restart => RESTART_LASTS,
        }
    }
}

/// For how long connections are reset at most.
pub const RESETS_LAST: Duration = Duration::from_secs(1);
const RESTART_LASTS: Duration = Duration::from_secs(9);
/// Between two restarts of a proxy.
const RESTART_EVERY: Duration = Duration::from_secs(300);

/// The Machine whose proxy is restarted.
pub const RESTARTED: usize = 2;

/// A fault with its time since the start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Planned {
    pub at: Duration,
    pub machine: usize,
    pub fault: Fault,
}

/// All faults of a run, one after the other, with 2 to 6 s between them.
pub fn plan(seed: u64, length: Duration, machines: usize) -> Vec<Planned> {
    let mut random = Rng::with_seed(seed ^ 0xfa17);
    let mut all = Vec::new();
    let mut at = Duration::from_secs(3);
    // Half-way in a short run.
    let mut restart = RESTART_EVERY.min(length / 2);
    loop {
        let (machine, fault) = if at >= restart {
            restart = at + RESTART_EVERY;
            (RESTARTED, Fault::Restart)
        } else {
            (random.usize(0..machines), any(&mut random))
        };
        // The last one is over before the end.
        if at + fault.length() + Duration::from_secs(5) > length {
            return all;
        }
        all.push(Planned { at, machine, fault });
        at += fault.length() + between(&mut random, 2.0, 6.0);
    }
}

fn any(random: &mut Rng) -> Fault {
    match random.u32(0..100) {
        0..22 => Fault::Kill(between(random, 0.2, 3.0)),
        22..47 => Fault::Hang(between(random, 0.3, 3.0)),
        47..60 => Fault::Slow(between(random, 0.03, 0.15), between(random, 1.0, 4.0)),
        60..75 => Fault::Resets(random.u32(1..=3)),
        75..87 => Fault::Reload,
        _ => Fault::Pause(between(random, 0.2, 2.0)),
    }
}

/// A random time between these seconds.
pub fn between(random: &mut Rng, least: f64, most: f64) -> Duration {
    Duration::from_secs_f64(least + (most - least) * random.f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_and_every_kind_of_them() {
        let half_an_hour = Duration::from_secs(1800);
        let all = plan(1, half_an_hour, 3);
        assert_eq!(all, plan(1, half_an_hour, 3));
        assert_ne!(all, plan(2, half_an_hour, 3));
        assert!(all.len() > 250, "{}", all.len());
        for name in Fault::NAMES {
            assert!(all.iter().any(|planned| planned.fault.name() == name), "{name}");
        }
        assert!(all.windows(2).all(|pair| pair[0].at + pair[0].fault.length() < pair[1].at), "one at a time");
        let restarts = all.iter().filter(|planned| planned.fault == Fault::Restart);
        assert!(restarts.clone().all(|planned| planned.machine == RESTARTED));
        assert_eq!(restarts.count(), 5);
        assert!(plan(1, Duration::from_secs(60), 3).iter().any(|planned| planned.fault == Fault::Restart));
    }
}
