//! The sums of a day, and exact sums of floating-point numbers.

use serde::{Deserialize, Serialize};

use crate::columns::LogRow;

/// A sum of floating-point numbers without any rounding on the way (Shewchuk's expansions, as in Python's `math.fsum`).
#[derive(Debug, Clone, Default)]
pub(crate) struct ExactSum {
    /// Numbers that do not overlap, from the smallest to the largest. Their sum is exact.
    partials: Vec<f64>,
}

impl ExactSum {
    /// Adds a number. Numbers that are not finite do not count.
    pub(crate) fn add(&mut self, value: f64) {
        if !value.is_finite() || value == 0.0 {
            return;
        }
        let mut carry = value;
        self.partials.retain_mut(|partial| {
            let (large, small) = if carry.abs() < partial.abs() { (*partial, carry) } else { (carry, *partial) };
            carry = large + small;
            *partial = small - (carry - large);
            *partial != 0.0
        });
        self.partials.push(carry);
    }

    /// The number nearest to the sum.
    pub(crate) fn rounded(&self) -> f64 {
        let mut rest = self.partials.iter().rev().copied();
        let Some(mut high) = rest.next() else { return 0.0 };
        let mut low = 0.0;
        for partial in rest.by_ref() {
            let sum = high + partial;
            low = partial - (sum - high);
            high = sum;
            if low != 0.0 {
                break;
            }
        }
        // A half is rounded towards what follows it.
        if let Some(next) = rest.next()
            && ((low < 0.0 && next < 0.0) || (low > 0.0 && next > 0.0))
        {
            let twice = low * 2.0;
            let sum = high + twice;
            if sum - high == twice {
                high = sum;
            }
        }
        high
    }

    /// The sum as numbers that add up to it exactly: the nearest number, what is missing to the sum, and so on. The
    /// same sum always has the same numbers.
    fn canonical(mut self) -> Vec<f64> {
        let mut numbers = Vec::new();
        while numbers.len() < 64 {
            let nearest = self.rounded();
            if nearest == 0.0 || !nearest.is_finite() {
                break;
            }
            numbers.push(nearest);
            self.add(-nearest);
        }
        numbers
    }
}

/// The sums over the rows of a day.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Number of rows.
    pub rows: u64,
    /// Spend in USD: the number nearest to the exact sum, whatever the order of the rows. Rows whose spend is not a
    /// finite number do not count.
    pub spend: f64,
    /// What is missing from `spend` to the exact sum, as numbers that add up to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spend_remainder: Vec<f64>,
    /// Prompt tokens.
    pub prompt_tokens: i64,
    /// Completion tokens.
    pub completion_tokens: i64,
    /// Total tokens.
    pub total_tokens: i64,
    /// Rows with a status other than `failure`, or without one.
    pub successes: u64,
    /// Rows with the status `failure`.
    pub failures: u64,
}

impl Sums {
    /// Whether rows can have these sums.
    pub(crate) fn are_possible(&self) -> bool {
        let most = i128::from(self.rows) * (i128::from(i32::MAX) + 1);
        let tokens = [self.prompt_tokens, self.completion_tokens, self.total_tokens];
        self.successes.checked_add(self.failures) == Some(self.rows)
            && tokens.into_iter().all(|tokens| i128::from(tokens).abs() <= most)
            && self.spend.is_finite()
            && self.spend_remainder.len() < 64
    }
}

/// Adds up rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct SumsBuilder {
    spend: ExactSum,
    sums: Sums,
}

impl SumsBuilder {
    /// Continues from sums.
    pub(crate) fn from_sums(sums: &Sums) -> Self {
        let mut spend = ExactSum::default();
        spend.add(sums.spend);
        for number in &sums.spend_remainder {
            spend.add(*number);
        }
        Self { spend, sums: sums.clone() }
    }

    pub(crate) fn add(&mut self, row: &LogRow<'_>) {
        self.add_values(row.spend, [row.prompt_tokens, row.completion_tokens, row.total_tokens], row.status);
    }

    pub(crate) fn add_values(&mut self, spend: f64, [prompt, completion, total]: [i32; 3], status: Option<&str>) {
        self.spend.add(spend);
        let sums = &mut self.sums;
        sums.rows += 1;
        sums.prompt_tokens = sums.prompt_tokens.wrapping_add(i64::from(prompt));
        sums.completion_tokens = sums.completion_tokens.wrapping_add(i64::from(completion));
        sums.total_tokens = sums.total_tokens.wrapping_add(i64::from(total));
        if status == Some("failure") {
            sums.failures += 1;
        } else {
            sums.successes += 1;
        }
    }

    pub(crate) fn finish(self) -> Sums {
        let mut numbers = self.spend.canonical().into_iter();
        Sums { spend: numbers.next().unwrap_or_default(), spend_remainder: numbers.collect(), ..self.sums }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sums(values: &[f64]) -> Sums {
        let mut builder = SumsBuilder::default();
        for value in values {
            builder.add_values(*value, [1, 2, 3], None);
        }
        builder.finish()
    }

    #[test]
    fn what_rounding_would_lose_is_kept() {
        assert_eq!(sums(&[1e16, 1.0, -1e16]).spend, 1.0);
        assert_eq!(sums(&[0.1; 10]).spend, 1.0);
        assert_eq!(sums(&[f64::NAN, 0.5, f64::INFINITY]).spend, 0.5);
    }

    proptest! {
        #[test]
        fn the_order_of_the_rows_does_not_matter(
            values in proptest::collection::vec(prop_oneof![-1e-9..1e3f64, -1e20..1e20f64, Just(1e-30)], 0..60),
            cut in 0usize..60,
        ) {
            let mut other = values.clone();
            other.reverse();
            prop_assert_eq!(sums(&values), sums(&other));
            let (first, second) = values.split_at(cut.min(values.len()));
            let mut continued = SumsBuilder::from_sums(&sums(first));
            for value in second {
                continued.add_values(*value, [1, 2, 3], None);
            }
            prop_assert_eq!(continued.finish(), sums(&values));
        }
    }
}
