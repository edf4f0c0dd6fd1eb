//! Random tests use a new seed each time and print it. `LITESPEND_TEST_SEED=N` repeats a run.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseResult, TestRunner};

/// The seed of this test: the requested one, or a new one.
pub(crate) fn seed() -> u64 {
    let asked = std::env::var("LITESPEND_TEST_SEED").ok();
    let seed = asked.map_or_else(|| u64::from(rand::random::<u32>()), |text| text.parse().unwrap());
    println!("LITESPEND_TEST_SEED={seed}");
    seed
}

/// Checks a rule with this many random cases. If a case breaks the rule, the smallest such case is printed with the
/// seed.
pub(crate) fn check<S: Strategy>(cases: u32, strategy: S, rule: impl Fn(S::Value) -> TestCaseResult) {
    let seed = seed();
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        max_global_rejects: cases.saturating_mul(4),
        ..Config::default()
    };
    if let Err(broken) = TestRunner::new(config).run(&strategy, rule) {
        panic!("with LITESPEND_TEST_SEED={seed}: {broken}");
    }
}
