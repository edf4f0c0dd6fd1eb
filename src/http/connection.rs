//! Connections: accepting them, and limits on their number, their duration and their idle time.

pub mod accept;
pub mod life;
pub mod patience;
pub mod seats;
pub mod stall;
pub mod streams;
