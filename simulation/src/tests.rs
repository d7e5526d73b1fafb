use super::*;

/// A hundred seeds with each run of the tests, half of them at a time; `cargo xtask soak --simulation` runs thousands more.
fn no_invariant_is_violated(seeds: std::ops::Range<u64>) {
    let failures: Vec<String> = seeds.filter_map(|seed| run(seed).failure()).collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn no_seed_of_the_first_fifty_violates_an_invariant() {
    no_invariant_is_violated(0..50);
}

#[test]
fn no_seed_of_the_next_fifty_violates_an_invariant() {
    no_invariant_is_violated(50..100);
}

#[test]
fn a_seed_replays() {
    for seed in [3, 17] {
        let (first, second) = (run(seed), run(seed));
        let differs = first.trace.iter().zip(&second.trace).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.trace.len(), second.trace.len());
        assert!(first.requests > 50, "{}", first.requests);
    }
}

#[test]
fn time_costs_no_time() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let began = std::time::Instant::now();
    let passed = runtime.block_on(async {
        let began = clock::now();
        tokio::time::sleep(Duration::from_secs(1000)).await;
        clock::since(began)
    });
    assert!(passed >= Duration::from_secs(1000) && began.elapsed() < Duration::from_secs(100));
}
