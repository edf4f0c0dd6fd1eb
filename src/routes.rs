//! The handlers, a file a resource: parameters, answer types, handlers. A handler extracts, checks, calls one
//! store or pricing function, maps, and returns. Who may call it stands in `router::ROUTES`.

pub mod activity;
pub mod activity_scope;
pub mod activity_stream;
pub mod allowed_ips;
pub mod daily_activity;
pub mod dates;
pub mod global_activity;
pub mod health;
pub mod log_answers;
pub mod log_formats;
pub mod log_pages;
pub mod log_paging;
pub mod log_params;
pub mod log_rows;
pub mod management;
pub mod scoped_report;
pub mod search_text;
pub mod spend_calculate;
pub mod spend_logs;
pub mod spend_report;
pub mod spend_reset;
pub mod spend_tables;
pub mod spend_tags;
pub mod spend_usage;
pub mod team_activity;
