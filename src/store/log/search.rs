//! SQL conditions for substring search. Their cost is bounded, whatever the pattern and the searched text are.

use sqlx::{Postgres, QueryBuilder};

/// Only this many characters of a text are searched. Some patterns take as many steps per character as the pattern is
/// long.
pub const SEARCHED: usize = 50_000;

/// A JSON list or object of more than this many bytes has no text to compare with, because its text could have any
/// length.
const SMALL: usize = 16 * 1024;

/// SQL expression for the text of a JSON value, as `->>` returns it. NULL if the text could be very long.
pub fn text_of(value: &str) -> String {
    format!(
        "(SELECT CASE WHEN jsonb_typeof(value) NOT IN ('array', 'object') OR pg_column_size(value) <= {SMALL}
                      THEN value #>> '{{}}' END FROM (SELECT {value} AS value OFFSET 0) AS field)"
    )
}

/// Pushes the condition that `text` contains `part`. In `part`, `%`, `_` and `\` have the meaning that they have in
/// `LIKE`.
pub fn push_contains_like(query: &mut QueryBuilder<Postgres>, text: &str, part: &str) {
    if part.contains(['%', '_', '\\']) {
        query.push(format_args!("left({text}, {SEARCHED}) LIKE ")).push_bind(format!("%{part}%"));
    } else {
        push_contains(query, text, part);
    }
}

/// Pushes the condition that `text` contains `part` literally.
pub fn push_contains(query: &mut QueryBuilder<Postgres>, text: &str, part: &str) {
    query.push(format_args!("strpos(left({text}, {SEARCHED}), ")).push_bind(part.to_owned()).push(") > 0");
}

/// Pushes the condition that `text` contains `part`, ignoring case.
pub fn push_contains_in_any_case(query: &mut QueryBuilder<Postgres>, text: &str, part: &str) {
    query.push(format_args!("strpos(lower(left({text}, {SEARCHED})), lower("));
    query.push_bind(part.to_owned()).push("::text)) > 0");
}
