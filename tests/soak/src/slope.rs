//! Whether a measurement grows: least squares over means of blocks, with a confidence interval.
//!
//! Samples of a second depend on those before (a cache that fills, a fault that lasts), so blocks of 30 s are compared instead. The
//! dependence that is left, estimated from the residuals, widens the interval: `n` blocks with the correlation `r` are worth
//! `n (1 - r) / (1 + r)`. The confidence is that of all tested series together (Bonferroni), since one of many would otherwise seem
//! to grow by chance.

/// A measurement at a time, in seconds.
pub type Point = (f64, f64);

/// The confidence for all tested series together.
pub const CONFIDENCE: f64 = 0.95;

/// Blocks in which a slope is looked for.
const BLOCK_SECONDS: f64 = 30.0;
const LEAST_BLOCKS: f64 = 12.0;

/// A line through the blocks' means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    pub blocks: usize,
    /// Of all blocks.
    pub mean: f64,
    /// From the first block to the last one, along the line.
    pub growth: f64,
    /// The bounds of the growth's confidence interval.
    pub interval: (f64, f64),
}

/// The growth that is accepted in any case: this share of the mean, or this much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowance {
    pub share: f64,
    pub floor: f64,
}

impl Trend {
    /// Fits the means of the blocks. `None` if there are too few to say anything. `series`: how many are tested in all.
    pub fn of(blocks: &[Point], series: usize) -> Option<Self> {
        let n = blocks.len() as f64;
        if blocks.len() < 4 {
            return None;
        }
        let mean = |of: fn(&Point) -> f64| blocks.iter().map(of).sum::<f64>() / n;
        let (mid, level) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = blocks.iter().map(|(at, _)| (at - mid).powi(2)).sum();
        let slope = blocks.iter().map(|(at, value)| (at - mid) * (value - level)).sum::<f64>() / spread;
        let residuals: Vec<f64> = blocks.iter().map(|(at, value)| value - level - slope * (at - mid)).collect();
        let squares: f64 = residuals.iter().map(|r| r * r).sum();
        let lagged: f64 = residuals.windows(2).map(|pair| pair[0] * pair[1]).sum();
        let r = if squares > 0.0 { (lagged / squares).clamp(0.0, 0.9) } else { 0.0 };
        let worth = (n * (1.0 - r) / (1.0 + r)).max(3.0);
        let freedom = worth - 2.0;
        let error = (squares / (n - 2.0) / spread * (n / worth)).sqrt();
        let margin = student(1.0 - (1.0 - CONFIDENCE) / series.max(1) as f64 / 2.0, freedom) * error;
        let span = blocks.last()?.0 - blocks.first()?.0;
        let interval = ((slope - margin) * span, (slope + margin) * span);
        Some(Self { blocks: blocks.len(), mean: level, growth: slope * span, interval })
    }

    /// Whether it certainly grows, and by more than is accepted.
    pub fn grows(&self, allowance: Allowance) -> bool {
        self.interval.0 > 0.0 && self.growth > (allowance.share * self.mean.abs()).max(allowance.floor)
    }
}

/// The width of the blocks between these times: 30 s, or less in a short run.
pub fn width(from: f64, to: f64) -> f64 {
    ((to - from) / LEAST_BLOCKS).clamp(1.0, BLOCK_SECONDS)
}

/// The values between these times, by block, each with the block's middle. A last block that is not whole is left out.
pub fn blocks(points: impl IntoIterator<Item = Point>, from: f64, to: f64) -> Vec<(f64, Vec<f64>)> {
    let width = width(from, to);
    let count = ((to - from) / width + 1e-9).floor() as usize;
    let mut all: Vec<(f64, Vec<f64>)> = (0..count).map(|n| (from + (n as f64 + 0.5) * width, Vec::new())).collect();
    for (at, value) in points {
        if at >= from
            && let Some((_, block)) = all.get_mut(((at - from) / width) as usize)
        {
            block.push(value);
        }
    }
    all.retain(|(_, values)| !values.is_empty());
    all
}

/// The blocks' means.
pub fn means(points: impl IntoIterator<Item = Point>, from: f64, to: f64) -> Vec<Point> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    blocks(points, from, to).into_iter().map(|(at, values)| (at, mean(&values))).collect()
}

/// The blocks' percentiles, by the nearest rank.
pub fn percentiles(points: impl IntoIterator<Item = Point>, from: f64, to: f64, percent: f64) -> Vec<Point> {
    let all = blocks(points, from, to).into_iter();
    all.map(|(at, mut values)| {
        values.sort_unstable_by(f64::total_cmp);
        (at, percentile(&values, percent))
    })
    .collect()
}

/// The percentile of a sorted list, by the nearest rank; 0 without values.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The quantile of Student's distribution, by the expansion of Cornish and Fisher: too wide by a few percent for two degrees
/// of freedom, exact for many.
fn student(p: f64, freedom: f64) -> f64 {
    let z = normal(p);
    let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
    let one = (z3 + z) / 4.0;
    let two = (5.0 * z5 + 16.0 * z3 + 3.0 * z) / 96.0;
    let three = (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / 384.0;
    z + one / freedom + two / freedom.powi(2) + three / freedom.powi(3)
}

/// The quantile of the normal distribution, by bisection of its distribution function.
fn normal(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..80 {
        let mid = f64::midpoint(low, high);
        if distribution(mid) < p { low = mid } else { high = mid }
    }
    f64::midpoint(low, high)
}

/// The normal distribution function: the series of `erf`, which converges everywhere.
fn distribution(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while f64::abs(term) > 1e-16 * f64::abs(sum) && n < 500.0 {
        term *= x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Allowance = Allowance { share: 0.02, floor: 1024.0 };

    /// Half an hour of samples: a level, noise that depends on the moment before, and a growth.
    fn samples(seed: u64, level: f64, noise: f64, growth: f64) -> Vec<Point> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut drift = 0.0;
        (0..1800)
            .map(|second| {
                drift = 0.9 * drift + noise * (random.f64() - 0.5);
                (f64::from(second), level + drift + growth * f64::from(second) / 1800.0)
            })
            .collect()
    }

    fn trend(points: Vec<Point>) -> Trend {
        Trend::of(&means(points, 360.0, 1800.0), 30).unwrap()
    }

    #[test]
    fn a_leak_is_found_in_noise() {
        for seed in 0..50 {
            // 40 MiB that grow by 3 MiB in half an hour.
            let leak = trend(samples(seed, 40_960.0, 500.0, 3072.0));
            assert_eq!(leak.blocks, 48);
            assert!(leak.grows(MEMORY), "{seed}: {leak:?}");
            // 60 descriptors, of which one more stays open every minute.
            let leak = trend(samples(seed, 60.0, 8.0, 30.0));
            assert!(leak.grows(Allowance { share: 0.02, floor: 4.0 }), "{seed}: {leak:?}");
        }
    }

    #[test]
    fn noise_is_no_leak() {
        for seed in 0..300 {
            let calm = trend(samples(seed, 40_960.0, 500.0, 0.0));
            assert!(!calm.grows(Allowance { share: 0.0, floor: 0.0 }), "{seed}: {calm:?}");
        }
    }

    #[test]
    fn a_growth_below_the_allowance_and_a_fall_are_accepted() {
        assert!(!trend(samples(1, 40_960.0, 10.0, 800.0)).grows(MEMORY));
        assert!(trend(samples(1, 40_960.0, 10.0, 800.0)).grows(Allowance { share: 0.01, floor: 100.0 }));
        assert!(!trend(samples(1, 40_960.0, 10.0, -9000.0)).grows(MEMORY));
        // Constant values: no error, and no growth.
        assert!(!trend(samples(1, 17.0, 0.0, 0.0)).grows(Allowance { share: 0.0, floor: 0.0 }));
    }

    #[test]
    fn the_warm_up_does_not_count_and_short_runs_have_shorter_blocks() {
        let mut points = samples(1, 100.0, 0.0, 0.0);
        points.iter_mut().take(360).for_each(|point| point.1 = 0.0);
        assert!(means(points, 360.0, 1800.0).iter().all(|block| block.1 == 100.0));
        assert_eq!(width(12.0, 60.0), 4.0);
        assert_eq!(blocks(samples(1, 1.0, 0.0, 0.0), 12.0, 60.0).len(), 12);
        assert_eq!(Trend::of(&[(0.0, 1.0), (1.0, 1.0)], 1), None);
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        assert!((normal(0.975) - 1.959_964).abs() < 1e-5);
        assert!((normal(0.001) + 3.090_232).abs() < 1e-5);
        assert!((student(0.975, 10.0) - 2.228).abs() < 0.005);
        assert!((student(0.975, 46.0) - 2.013).abs() < 0.002);
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 50.0), 2.0);
        assert_eq!(percentiles((0..48).map(|n| (f64::from(n), f64::from(n))), 0.0, 48.0, 99.0)[0], (2.0, 3.0));
    }
}
