//! In overloads of different shapes, Outrigger does as much as a limit that an operator has set to the app's capacity.

use outrigger_algorithms::told::OVERLOADS;

const SEEDS: std::ops::Range<u64> = 1..9;

#[test]
fn an_unknown_capacity_is_used_as_well_as_one_that_an_operator_told() {
    for overload in OVERLOADS {
        let (mut good, mut as_told) = (0.0, 0.0);
        for seed in SEEDS {
            let [ours, told] = overload.run(seed);
            good += ours.good;
            as_told += told.good;
            // If critical requests alone exceed the capacity, neither serves all.
            let least = (told.critical - 0.015).min(0.999);
            assert!(ours.critical >= least, "{}, seed {seed}: {ours:?}, told: {told:?}", overload.name);
        }
        assert!(good >= 0.97 * as_told, "{}: {good} instead of {as_told}", overload.name);
    }
}
