//! The figures of a daily row, all in one list: the struct, its sums, and the column lists of SQL follow from it.

use std::ops::AddAssign;
use std::sync::LazyLock;

use sqlx::FromRow;

/// A figure's column.
struct Column {
    name: &'static str,
    /// Its type in our statements.
    sql_type: &'static str,
    /// Whether a list of keys or users has it.
    is_listed: bool,
    /// Whether an older LiteLLM's tables lack it.
    is_newer: bool,
}

macro_rules! figures {
    ($($(#[$documentation:meta])* $name:ident: $type:ty, $sql_type:literal $(, $flag:ident)*;)*) => {
        /// Figures of one daily row, or the sums of several.
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
    /// USD.
    spend: f64, "float8", is_listed;
    /// Prompt tokens.
    prompt_tokens: i64, "bigint", is_listed;
    /// Completion tokens.
    completion_tokens: i64, "bigint", is_listed;
    /// Tokens read from the provider's cache.
    cache_read_input_tokens: i64, "bigint", is_listed;
    /// Tokens written to the provider's cache.
    cache_creation_input_tokens: i64, "bigint", is_listed;
    /// Tokens saved by prompt compression.
    compression_saved_tokens: i64, "bigint", is_newer;
    /// USD saved by prompt compression.
    compression_savings_spend: f64, "float8", is_newer;
    /// USD saved by the provider's cache.
    prompt_caching_savings_spend: f64, "float8", is_newer;
    /// USD saved by cache marks that the gateway added.
    gateway_injected_caching_savings_spend: f64, "float8", is_newer;
    /// USD saved by routing.
    autorouter_savings_spend: f64, "float8", is_newer;
    /// Requests.
    api_requests: i64, "bigint", is_listed;
    /// Requests that succeeded.
    successful_requests: i64, "bigint", is_listed;
    /// Requests that failed.
    failed_requests: i64, "bigint", is_listed;
    /// Sum of response times, milliseconds.
    total_response_time_ms: i64, "bigint", is_newer;
    /// Requests in that sum.
    timed_requests: i64, "bigint", is_newer;
}

impl Figures {
    /// Prompt and completion tokens.
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

/// The columns, by name.
pub static NAMES: LazyLock<String> = LazyLock::new(|| list(|column| Some(column.name.to_owned())));

/// The columns of a table of LiteLLM's, in our types.
pub static OF_TABLE: LazyLock<String> =
    LazyLock::new(|| list(|Column { name, sql_type, .. }| Some(format!("{name}::{sql_type}"))));

/// What stands for the columns that an older LiteLLM lacks.
pub static DEFAULTS: LazyLock<String> = LazyLock::new(|| {
    list(|Column { name, sql_type, is_newer, .. }| is_newer.then(|| format!("0::{sql_type} AS {name}")))
});

/// The sums of all.
pub static SUMS: LazyLock<String> = LazyLock::new(|| list(|column| Some(sum(column))));

/// The sums of those that a list of keys or users has.
pub static LISTED_SUMS: LazyLock<String> = LazyLock::new(|| list(|column| column.is_listed.then(|| sum(column))));

/// Zeros for the others.
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
