//! The handlers, a file a resource: parameters, answer types, handlers. A handler extracts, checks, calls one
//! store or pricing function, maps, and returns. Who may call it stands in `router::ROUTES`.

pub mod allowed_ips;
pub mod daily_activity;
pub mod dates;
pub mod health;
pub mod management;
pub mod spend_calculate;
pub mod spend_logs;
pub mod spend_report;
pub mod spend_reset;
pub mod spend_tags;
pub mod spend_usage;
