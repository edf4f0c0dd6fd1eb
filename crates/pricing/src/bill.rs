//! Turns usage and prices into a bill whose lines add up to the cost.

pub mod amount;
pub mod breakdown;
pub mod cost;
pub mod token_cost;
pub mod tools;
