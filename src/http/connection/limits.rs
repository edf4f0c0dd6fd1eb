//! Limits of connections and of what clients send and take: the flags, and their values in a running server.

use std::time::Duration;

use clap::Args;

/// The flags. Lengths of time are whole seconds.
#[derive(Clone, Debug, Args)]
pub struct ConnectionArgs {
    /// Client connections at most; beyond, one that is idle makes room, else the new one is refused.
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 1024, value_name = "N",
          value_parser = clap::value_parser!(u32).range(8..=100_000))]
    pub max_connections: u32,

    /// Of these from one address (IPv6: one /64 network); trusted proxies have no such limit.
    #[arg(long, env = "MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 256, value_name = "N",
          value_parser = clap::value_parser!(u32).range(4..=100_000))]
    pub max_connections_per_address: u32,

    /// Requests at the same time on one HTTP/2 connection.
    #[arg(long, env = "MAX_STREAMS", default_value_t = 100, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_streams: u32,

    /// Seconds from accepting a connection to its first whole request head, and from the first byte of a later head
    /// to its last.
    #[arg(long, env = "HEAD_TIMEOUT", default_value_t = 15, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub head_timeout: u64,

    /// Seconds that a connection without a request is kept.
    #[arg(long, env = "IDLE_TIMEOUT", default_value_t = 75, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub idle_timeout: u64,

    /// Seconds that a request's body is waited for while nothing, or less than 1 KiB a second, comes; past it, 408.
    #[arg(long, env = "BODY_TIMEOUT", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub body_timeout: u64,

    /// Seconds that a client is waited for which takes nothing, or less than 1 KiB a second, of its answer.
    #[arg(long, env = "ANSWER_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub answer_timeout: u64,
}

/// The limits of a running server.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address.
    pub per_address: usize,
    /// Requests at the same time on one HTTP/2 connection.
    pub streams: u32,
    /// For a request head.
    pub head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// Patience with a request's body.
    pub body: Duration,
    /// Patience with who takes an answer.
    pub answer: Duration,
}

impl From<&ConnectionArgs> for ConnectionLimits {
    fn from(args: &ConnectionArgs) -> Self {
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            connections: count(args.max_connections),
            per_address: count(args.max_connections_per_address),
            streams: args.max_streams,
            head: Duration::from_secs(args.head_timeout),
            idle: Duration::from_secs(args.idle_timeout),
            body: Duration::from_secs(args.body_timeout),
            answer: Duration::from_secs(args.answer_timeout),
        }
    }
}

impl Default for ConnectionLimits {
    /// The defaults of the flags.
    fn default() -> Self {
        Self {
            connections: 1024,
            per_address: 256,
            streams: 100,
            head: Duration::from_secs(15),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(10),
            answer: Duration::from_secs(60),
        }
    }
}
