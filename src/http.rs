//! The HTTP side of the server: connections, middleware layers, handlers and answers.

pub mod admission;
pub mod auth;
pub mod body_budget;
pub mod client_ip;
pub mod compression;
pub mod connection;
pub mod dashboard;
pub mod error;
pub mod extract;
pub mod openapi;
pub mod operations;
pub mod read_limits;
pub mod reads;
pub mod replica;
pub mod request_body;
pub mod response_headers;
pub mod router;
pub mod routes;
pub mod silence;
pub mod state;
pub mod stream;
pub mod telemetry;
pub mod upstream;
