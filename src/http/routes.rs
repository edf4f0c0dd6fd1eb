//! The request handlers, one file per resource. Each file has the parameters, the response types and the handlers, and
//! its `routes` enters the handlers in the router and in the OpenAPI document. A handler extracts and checks the
//! parameters, calls a function of the store or of the pricing crate, converts the result, and returns it. The table in
//! `route_table` says who may call which path.

pub mod accounts;
pub mod activity;
pub mod allowed_ips;
pub mod booking;
pub mod calculate;
pub mod dates;
pub mod health;
pub mod log;
pub mod otlp;
pub mod page_count;
pub mod report;
pub mod reset;
pub mod tags;
