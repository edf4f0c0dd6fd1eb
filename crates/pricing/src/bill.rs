//! From usage and prices to a bill whose lines add up.

pub mod amount;
pub mod breakdown;
pub mod cost;
pub mod token_cost;
pub mod tools;
