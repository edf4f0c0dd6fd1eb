//! Conditions of texts that contain a part, in time that neither the part nor the text can stretch far.

use sqlx::{Postgres, QueryBuilder};

/// Characters of a text that are searched: some patterns take as many steps a character as they are long.
pub const SEARCHED: usize = 50_000;

/// A JSON list or object of more than this many bytes has no text to be compared with: it could be of any length.
const SMALL: usize = 16 * 1024;

/// The text of a JSON value as SQL, as `->>` gives it, where it can be of no great length.
pub fn text_of(value: &str) -> String {
    format!(
        "(SELECT CASE WHEN jsonb_typeof(value) NOT IN ('array', 'object') OR pg_column_size(value) <= {SMALL}
                      THEN value #>> '{{}}' END FROM (SELECT {value} AS value OFFSET 0) AS field)"
    )
}

/// Pushes that a text contains a part in which `%`, `_` and `\` mean what they mean to `LIKE`.
pub fn push_contains_like(query: &mut QueryBuilder<Postgres>, text: &str, part: &str) {
    if part.contains(['%', '_', '\\']) {
        query.push(format_args!("left({text}, {SEARCHED}) LIKE ")).push_bind(format!("%{part}%"));
    } else {
        push_contains(query, text, part);
    }
}

/// Pushes that a text contains a part as it is.
pub fn push_contains(query: &mut QueryBuilder<Postgres>, text: &str, part: &str) {
    query.push(format_args!("strpos(left({text}, {SEARCHED}), ")).push_bind(part.to_owned()).push(") > 0");
}

/// Pushes that a text contains a part, in capital or small letters.
pub fn push_contains_in_any_case(query: &mut QueryBuilder<Postgres>, text: &str, part: &str) {
    query.push(format_args!("strpos(lower(left({text}, {SEARCHED})), lower("));
    query.push_bind(part.to_owned()).push("::text)) > 0");
}
