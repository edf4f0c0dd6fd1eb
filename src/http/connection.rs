//! Connections: accepting them, and limits on their number, their duration and their idle time.

pub mod accept;
pub mod limiter;
pub mod progress_budget;
pub mod stall;
pub mod state;
pub mod streams;
