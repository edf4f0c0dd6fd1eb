//! Reads the columns of log rows safely, whatever clients stored in them. The text of a JSON column can be far longer
//! than its stored form: a number of ten bytes can have 131,072 digits. PostgreSQL refuses to write a text of more than
//! a gigabyte, and the error would fail the whole response. So statements measure every JSON column before they write
//! it, and leave it out if it is too long. They also shorten long strings.

use serde::{Serialize, Serializer};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::types::JsonRawValue;
use sqlx::{Decode, Postgres, QueryBuilder, Type, ValueRef};

/// Value of a JSON column.
#[derive(Debug, Default)]
pub enum JsonField {
    /// The column is NULL.
    #[default]
    Null,
    /// The stored value is too long and is left out. Responses have null instead.
    LeftOut,
    /// The stored JSON.
    Value(Box<JsonRawValue>),
}

impl JsonField {
    /// The value of a JSON column that is not in PostgreSQL.
    pub fn from_text(text: Option<String>) -> Self {
        text.map_or(Self::Null, |text| JsonRawValue::from_string(text).map_or(Self::LeftOut, Self::Value))
    }

    /// The JSON text; `None` if the column is NULL or left out.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Value(json) => Some(json.get()),
            Self::Null | Self::LeftOut => None,
        }
    }

    /// The JSON text, moved out without a copy.
    pub fn into_text(self) -> Option<String> {
        match self {
            Self::Value(json) => Some(Box::<str>::from(json).into_string()),
            Self::Null | Self::LeftOut => None,
        }
    }

    /// Length of the JSON text in bytes; 0 if there is none.
    pub fn bytes(&self) -> usize {
        self.text().map_or(0, str::len)
    }

    /// Whether a stored value is left out.
    pub fn is_left_out(&self) -> bool {
        matches!(self, Self::LeftOut)
    }

    /// Replaces a stored value with [`JsonField::LeftOut`].
    pub fn leave_out(&mut self) {
        if !matches!(self, Self::Null) {
            *self = Self::LeftOut;
        }
    }
}

impl Serialize for JsonField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(json) => json.serialize(serializer),
            Self::Null | Self::LeftOut => serializer.serialize_none(),
        }
    }
}

impl Type<Postgres> for JsonField {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }

    fn compatible(of: &PgTypeInfo) -> bool {
        <String as Type<Postgres>>::compatible(of)
    }
}

impl<'r> Decode<'r, Postgres> for JsonField {
    /// The statement returns an empty string for a column that is left out, because no JSON text is empty.
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        if value.is_null() {
            return Ok(Self::Null);
        }
        let text = value.as_str()?;
        Ok(JsonRawValue::from_string(text.to_owned()).map_or(Self::LeftOut, Self::Value))
    }
}

/// Limits on the JSON columns of a row, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Limit for one column, both for its stored form and for its text.
    pub column: usize,
    /// Limit for the texts of all columns of a row together. If they exceed it, every column that is longer than an
    /// equal share of this limit is left out.
    pub row: usize,
}

impl Bounds {
    /// Leaves out columns that are too long, as statements of [`Columns::push`] do.
    pub fn apply(self, columns: &mut [&mut JsonField]) {
        let share = self.row / columns.len().max(1);
        let total: usize = columns.iter().map(|field| field.bytes()).filter(|bytes| *bytes <= self.column).sum();
        for field in columns {
            if field.bytes() > self.column || field.bytes() > share && total > self.row {
                field.leave_out();
            }
        }
    }
}

/// Shortens a long string, as statements of [`Columns::push`] do.
pub fn shortened(text: String) -> String {
    if text.len() <= LONG_TEXT {
        return text;
    }
    text.chars().take(SHORT_TEXT).chain(['…']).collect()
}

/// A string of more than this many bytes is shortened to its first [`SHORT_TEXT`] characters.
const LONG_TEXT: usize = 4_096;

/// Number of characters of a shortened string.
const SHORT_TEXT: usize = 1_000;

/// A JSON value of up to this many bytes, uncompressed, is written without measuring its numbers. Even if all its
/// numbers expand as much as possible, its text has no more than some hundred megabytes.
const SMALL: usize = 16 * 1024;

/// A value that is nested more deeply than this is left out, because PostgreSQL's own functions fail on very deep
/// nesting.
const DEPTH: usize = 512;

/// The columns of a row that a response contains.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// Columns that are selected unchanged.
    pub plain: &'static str,
    /// String columns. A client may have stored long values in them.
    pub texts: &'static [&'static str],
    /// JSON columns.
    pub json: &'static [&'static str],
}

impl Columns {
    /// Pushes `SELECT ... FROM (rows) AS log`. The statement `rows` must already be ordered. Each step is a subquery of
    /// its own, so that every value is read and written once, and only after the rows were sorted.
    pub fn push(
        &self,
        query: &mut QueryBuilder<Postgres>,
        bounds: Bounds,
        rows: impl FnOnce(&mut QueryBuilder<Postgres>),
    ) {
        let Bounds { column, row } = bounds;
        let raw_bound = column.saturating_mul(2);
        let share = row / self.json.len().max(1);
        let list = |form: &dyn Fn(&str) -> String| self.json.iter().map(|name| form(name)).collect::<String>();
        query.push("SELECT ").push(self.plain);
        for name in self.texts {
            query.push(format_args!(
                ", CASE WHEN octet_length({name}) > {LONG_TEXT} THEN left({name}, {SHORT_TEXT}) || '…' ELSE {name} END AS {name}"
            ));
        }
        query.push(list(&|name| {
            format!(
                ", CASE WHEN octet_length({name}_text) > {column} OR octet_length({name}_text) > {share} AND text_bytes > {row}
                        THEN '' ELSE {name}_text END AS {name}"
            )
        }));
        query.push(" FROM (SELECT written.*, 0");
        query.push(list(&|name| {
            format!(
                " + CASE WHEN octet_length({name}_text) <= {column} THEN octet_length({name}_text)::bigint ELSE 0 END"
            )
        }));
        query.push(" AS text_bytes FROM (SELECT stored.*");
        query.push(list(&|name| {
            format!(
                ", CASE WHEN {name} IS NULL THEN NULL
                        WHEN {name}_whole IS NULL OR pg_column_size({name}_whole) > {raw_bound} THEN ''
                        WHEN pg_column_size({name}_whole) <= {SMALL} THEN {name}_whole::text
                        WHEN jsonb_path_exists({name}_whole, 'strict $.**{{{DEPTH}}}') THEN ''
                        WHEN (SELECT sum(octet_length(number::text)) FROM jsonb_array_elements(jsonb_path_query_array(
                                  {name}_whole, 'strict $.** ? (@.type() == \"number\")')) AS number) > {column} THEN ''
                        ELSE {name}_whole::text END AS {name}_text"
            )
        }));
        query.push(" FROM (SELECT log.*");
        // The empty path selects the whole value. It is decompressed once here for all later steps.
        query.push(list(&|name| {
            format!(", CASE WHEN pg_column_size({name}) <= {column} THEN {name} #> '{{}}' END AS {name}_whole")
        }));
        query.push(" FROM (");
        rows(query);
        query.push(") AS log OFFSET 0) AS stored OFFSET 0) AS written OFFSET 0) AS log");
    }
}
