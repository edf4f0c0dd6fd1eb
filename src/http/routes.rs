//! The handlers, a file a resource: parameters, answer types, handlers. A handler extracts, checks, calls one
//! store or pricing function, maps, and returns. Who may call it stands in `router::ROUTES`.

pub mod accounts;
pub mod activity;
pub mod allowed_ips;
pub mod booking;
pub mod calculate;
pub mod dates;
pub mod health;
pub mod log;
pub mod report;
pub mod reset;
pub mod tags;
