//! The numeric columns of a daily row, defined in one list. The struct, its addition and the SQL column lists are
//! generated from it.

use std::ops::AddAssign;
use std::sync::LazyLock;

use sqlx::FromRow;

/// Column of one figure.
struct Column {
    name: &'static str,
    /// SQL type to which statements cast the column.
    sql_type: &'static str,
    /// Whether lists of keys or users contain the figure.
    is_listed: bool,
    /// Whether the tables of an older LiteLLM lack the column.
    is_newer: bool,
}

macro_rules! figures {
    ($($(#[$documentation:meta])* $name:ident: $type:ty, $sql_type:literal $(, $flag:ident)*;)*) => {
        /// Figures of one daily row, or sums over several rows.
        #[derive(Clone, Debug, Default, PartialEq, FromRow)]
        pub struct Figures {
            $($(#[$documentation])* pub $name: $type,)*
        }

        impl AddAssign<&Figures> for Figures {
            fn add_assign(&mut self, other: &Figures) {
                $(self.$name += other.$name;)*
            }
        }

        const COLUMNS: &[Column] = &[$({
            #[allow(unused_mut, clippy::allow_attributes, reason = "a column without flags")]
            let mut column =
                Column { name: stringify!($name), sql_type: $sql_type, is_listed: false, is_newer: false };
            $(column.$flag = true;)*
            column
        },)*];
    };
}

figures! {
    /// Spend in USD.
    spend: f64, "float8", is_listed;
    /// Prompt tokens.
    prompt_tokens: i64, "bigint", is_listed;
    /// Completion tokens.
    completion_tokens: i64, "bigint", is_listed;
    /// Prompt tokens that were read from the provider's cache.
    cache_read_input_tokens: i64, "bigint", is_listed;
    /// Prompt tokens that were written to the provider's cache.
    cache_creation_input_tokens: i64, "bigint", is_listed;
    /// Tokens saved by prompt compression.
    compression_saved_tokens: i64, "bigint", is_newer;
    /// USD saved by prompt compression.
    compression_savings_spend: f64, "float8", is_newer;
    /// USD saved by the provider's cache.
    prompt_caching_savings_spend: f64, "float8", is_newer;
    /// USD saved by cache markers that the gateway added.
    gateway_injected_caching_savings_spend: f64, "float8", is_newer;
    /// USD saved by automatic routing.
    autorouter_savings_spend: f64, "float8", is_newer;
    /// Number of requests.
    api_requests: i64, "bigint", is_listed;
    /// Number of requests that succeeded.
    successful_requests: i64, "bigint", is_listed;
    /// Number of requests that failed.
    failed_requests: i64, "bigint", is_listed;
    /// Sum of response times, in milliseconds.
    total_response_time_ms: i64, "bigint", is_newer;
    /// Number of requests that `total_response_time_ms` covers.
    timed_requests: i64, "bigint", is_newer;
}

impl Figures {
    /// Total tokens: prompt and completion tokens.
    pub fn total_tokens(&self) -> i64 {
        self.prompt_tokens + self.completion_tokens
    }
}

fn list(write: impl Fn(&Column) -> Option<String>) -> String {
    COLUMNS.iter().filter_map(write).collect::<Vec<_>>().join(", ")
}

fn sum(column: &Column) -> String {
    let Column { name, sql_type, .. } = column;
    format!("sum({name})::{sql_type} AS {name}")
}

/// Names of all columns, as an SQL list.
pub static NAMES: LazyLock<String> = LazyLock::new(|| list(|column| Some(column.name.to_owned())));

/// All columns, cast from the types of LiteLLM's tables to the types of our statements.
pub static OF_TABLE: LazyLock<String> =
    LazyLock::new(|| list(|Column { name, sql_type, .. }| Some(format!("{name}::{sql_type}"))));

/// Zeros that replace the columns that an older LiteLLM lacks.
pub static DEFAULTS: LazyLock<String> = LazyLock::new(|| {
    list(|Column { name, sql_type, is_newer, .. }| is_newer.then(|| format!("0::{sql_type} AS {name}")))
});

/// Sums of all columns.
pub static SUMS: LazyLock<String> = LazyLock::new(|| list(|column| Some(sum(column))));

/// Sums of the columns that lists of keys or users contain.
pub static LISTED_SUMS: LazyLock<String> = LazyLock::new(|| list(|column| column.is_listed.then(|| sum(column))));

/// Zeros for the columns that those lists do not contain.
pub static UNLISTED_ZEROS: LazyLock<String> = LazyLock::new(|| {
    list(|Column { name, sql_type, is_listed, .. }| (!is_listed).then(|| format!("0::{sql_type} AS {name}")))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_follow_from_the_columns() {
        assert!(NAMES.starts_with("spend, prompt_tokens, ") && NAMES.ends_with(", timed_requests"), "{}", *NAMES);
        assert!(OF_TABLE.contains("api_requests::bigint") && OF_TABLE.contains("spend::float8"), "{}", *OF_TABLE);
        assert!(SUMS.contains("sum(autorouter_savings_spend)::float8 AS autorouter_savings_spend"), "{}", *SUMS);
        let (listed, zeros) = (LISTED_SUMS.split(", ").count(), UNLISTED_ZEROS.split(", ").count());
        assert_eq!((listed, zeros, listed + zeros), (8, 7, COLUMNS.len()));
        assert_eq!(DEFAULTS.split(", ").count(), 7);
    }

    #[test]
    fn every_figure_is_added() {
        let mut sum = Figures { spend: 0.5, prompt_tokens: 2, completion_tokens: 3, ..Figures::default() };
        let other = Figures { spend: 0.25, timed_requests: 1, ..sum.clone() };
        sum += &other;
        let expected =
            Figures { spend: 0.75, prompt_tokens: 4, completion_tokens: 6, timed_requests: 1, ..Figures::default() };
        assert_eq!((sum.total_tokens(), sum), (10, expected));
    }
}
