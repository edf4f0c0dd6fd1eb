//! Turns usage and prices into a bill whose lines add up to the cost.

pub(crate) mod amount;
pub(crate) mod breakdown;
pub(crate) mod cost;
pub(crate) mod token_cost;
pub(crate) mod tools;
