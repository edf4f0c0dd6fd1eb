//! Accepting connections, and how long and how many of them.

pub mod accept;
pub mod life;
pub mod patience;
pub mod seats;
pub mod stall;
pub mod streams;
