//! Fields of a log's row as answers give them, whatever somebody stored. A JSON column's text may be far longer than what
//! is stored of it (a number of ten bytes can have 131,072 digits), and beyond a gigabyte PostgreSQL refuses to write it,
//! which would fail the whole answer. So every JSON column is measured before it is written, and one that is too long is
//! left out; long texts are shortened.

use serde::{Serialize, Serializer};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::types::JsonRawValue;
use sqlx::{Decode, Postgres, QueryBuilder, Type, ValueRef};

/// A JSON column.
#[derive(Debug, Default)]
pub enum JsonField {
    /// Nothing is stored.
    #[default]
    Null,
    /// Something too long to be given is stored: null in answers.
    LeftOut,
    /// The JSON that is stored.
    Value(Box<JsonRawValue>),
}

impl JsonField {
    /// The JSON text, where there is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Value(json) => Some(json.get()),
            Self::Null | Self::LeftOut => None,
        }
    }

    /// The JSON text without a copy.
    pub fn into_text(self) -> Option<String> {
        match self {
            Self::Value(json) => Some(Box::<str>::from(json).into_string()),
            Self::Null | Self::LeftOut => None,
        }
    }

    /// Bytes of the text.
    pub fn bytes(&self) -> usize {
        self.text().map_or(0, str::len)
    }

    /// Whether something is stored that is not given.
    pub fn is_left_out(&self) -> bool {
        matches!(self, Self::LeftOut)
    }

    /// Leaves out what is stored.
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
    /// The statement says with an empty text that the column is left out: no JSON is empty.
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        if value.is_null() {
            return Ok(Self::Null);
        }
        let text = value.as_str()?;
        Ok(JsonRawValue::from_string(text.to_owned()).map_or(Self::LeftOut, Self::Value))
    }
}

/// How long the JSON columns of a row may be, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// One column: as stored, and as text.
    pub column: usize,
    /// All columns of a row, as text. Where they are longer together, those longer than their share are left out.
    pub row: usize,
}

/// A text of more than this many bytes is shortened to its first [`SHORT_TEXT`] characters.
const LONG_TEXT: usize = 4_096;

/// Characters of a shortened text.
const SHORT_TEXT: usize = 1_000;

/// A JSON value of up to this many bytes, uncompressed, is written without a look at its numbers: even if all are of the
/// longest kind, its text is no longer than some hundred megabytes.
const SMALL: usize = 16 * 1024;

/// Lists in lists are left out beyond this depth: PostgreSQL's own functions fail on very deep ones.
const DEPTH: usize = 512;

/// The columns that an answer reads of a row.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// As they are.
    pub plain: &'static str,
    /// Texts that anybody may have made long.
    pub texts: &'static [&'static str],
    /// JSON.
    pub json: &'static [&'static str],
}

impl Columns {
    /// `SELECT ... FROM (rows) AS log`, where `rows` are in order already. Each step is a query of its own, so that each
    /// value is read and written once, and after the rows were sorted.
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
        // The empty path is the whole value, uncompressed once for all that follows.
        query.push(list(&|name| {
            format!(", CASE WHEN pg_column_size({name}) <= {column} THEN {name} #> '{{}}' END AS {name}_whole")
        }));
        query.push(" FROM (");
        rows(query);
        query.push(") AS log OFFSET 0) AS stored OFFSET 0) AS written OFFSET 0) AS log");
    }
}
