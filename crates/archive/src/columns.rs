//! The columns of the log, with LiteLLM's names, in the order of the files.

use std::sync::{Arc, LazyLock};

use arrow_array::builder::{ArrayBuilder, Float64Builder, Int32Builder, StringBuilder, TimestampMicrosecondBuilder};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::row::RowView;

/// The version of the files' schema that this crate writes.
pub const SCHEMA_VERSION: u32 = 1;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    RequiredText,
    Text,
    Float,
    Integer,
    OptionalInteger,
    Time,
    OptionalTime,
}

macro_rules! kind {
    (required_text) => {
        Kind::RequiredText
    };
    (text) => {
        Kind::Text
    };
    (float) => {
        Kind::Float
    };
    (integer) => {
        Kind::Integer
    };
    (optional_integer) => {
        Kind::OptionalInteger
    };
    (time) => {
        Kind::Time
    };
    (optional_time) => {
        Kind::OptionalTime
    };
}

macro_rules! borrowed {
    (required_text, $life:lifetime) => { &$life str };
    (text, $life:lifetime) => { Option<&$life str> };
    (float, $life:lifetime) => { f64 };
    (integer, $life:lifetime) => { i32 };
    (optional_integer, $life:lifetime) => { Option<i32> };
    (time, $life:lifetime) => { i64 };
    (optional_time, $life:lifetime) => { Option<i64> };
}

macro_rules! owned {
    (required_text) => { String };
    (text) => { Option<String> };
    (float) => { f64 };
    (integer) => { i32 };
    (optional_integer) => { Option<i32> };
    (time) => { i64 };
    (optional_time) => { Option<i64> };
}

macro_rules! builder {
    (required_text) => {
        StringBuilder
    };
    (text) => {
        StringBuilder
    };
    (float) => {
        Float64Builder
    };
    (integer) => {
        Int32Builder
    };
    (optional_integer) => {
        Int32Builder
    };
    (time) => {
        TimestampMicrosecondBuilder
    };
    (optional_time) => {
        TimestampMicrosecondBuilder
    };
}

macro_rules! append {
    (text, $builder:expr, $value:expr) => {
        $builder.append_option($value)
    };
    (optional_integer, $builder:expr, $value:expr) => {
        $builder.append_option($value)
    };
    (optional_time, $builder:expr, $value:expr) => {
        $builder.append_option($value)
    };
    ($kind:ident, $builder:expr, $value:expr) => {
        $builder.append_value($value)
    };
}

macro_rules! bytes {
    (required_text, $value:expr) => {
        $value.len()
    };
    (text, $value:expr) => {
        $value.map_or(0, str::len)
    };
    ($kind:ident, $value:expr) => {
        size_of_val(&$value)
    };
}

/// The finished array, and a builder with room for another one like it.
macro_rules! finish {
    (required_text, $builder:expr) => {
        finish_texts(&mut $builder)
    };
    (text, $builder:expr) => {
        finish_texts(&mut $builder)
    };
    ($kind:ident, $builder:expr) => {
        Arc::new($builder.finish()) as ArrayRef
    };
}

/// The most room that a new builder has from the start. A single batch may have had far longer texts than others.
const MOST_ROOM: usize = 16 * 1024 * 1024;

fn finish_texts(builder: &mut StringBuilder) -> ArrayRef {
    let (rows, bytes) = (builder.len(), builder.values_slice().len().min(MOST_ROOM));
    let mut full = std::mem::replace(builder, StringBuilder::with_capacity(rows, bytes + bytes / 16));
    Arc::new(full.finish())
}

macro_rules! borrow {
    (required_text, $value:expr) => {
        $value.as_str()
    };
    (text, $value:expr) => {
        $value.as_deref()
    };
    ($kind:ident, $value:expr) => {
        $value
    };
}

macro_rules! take {
    (required_text, $view:expr, $column:expr) => {
        $view.text($column).unwrap_or_default().to_owned()
    };
    (text, $view:expr, $column:expr) => {
        $view.text($column).map(str::to_owned)
    };
    (float, $view:expr, $column:expr) => {
        $view.float($column).unwrap_or_default()
    };
    (integer, $view:expr, $column:expr) => {
        narrow($view.integer($column)).unwrap_or_default()
    };
    (optional_integer, $view:expr, $column:expr) => {
        narrow($view.integer($column))
    };
    (time, $view:expr, $column:expr) => {
        $view.integer($column).unwrap_or_default()
    };
    (optional_time, $view:expr, $column:expr) => {
        $view.integer($column)
    };
}

fn narrow(value: Option<i64>) -> Option<i32> {
    value.and_then(|value| i32::try_from(value).ok())
}

macro_rules! columns {
    ($($(#[$doc:meta])* $variant:ident $field:ident $name:literal $kind:ident,)+) => {
        /// A column of the log.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Column {
            $($(#[$doc])* $variant,)+
        }

        impl Column {
            /// All columns, in the order of the files.
            pub const ALL: [Self; [$(Self::$variant),+].len()] = [$(Self::$variant),+];

            /// LiteLLM's name of the column, which is its name in the files.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            pub(crate) fn kind(self) -> Kind {
                match self { $(Self::$variant => kind!($kind),)+ }
            }
        }

        /// A row to be written. Times are microseconds since 1970-01-01 UTC, spend is in USD, JSON is text.
        #[derive(Debug, Clone, Copy, Default, PartialEq)]
        pub struct LogRow<'a> {
            $($(#[$doc])* pub $field: borrowed!($kind, 'a),)+
        }

        /// A row that was read. A column outside the projection is null, empty or 0. Times are microseconds since
        /// 1970-01-01 UTC, spend is in USD, JSON is text.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct OwnedRow {
            $($(#[$doc])* pub $field: owned!($kind),)+
        }

        impl LogRow<'_> {
            /// About how many bytes the row takes in memory.
            pub(crate) fn bytes(&self) -> usize {
                0 $(+ bytes!($kind, self.$field))+
            }

            /// Whether the row has messages, a response or a request.
            pub(crate) fn has_bodies(&self) -> bool {
                self.messages.is_some() || self.response.is_some() || self.proxy_server_request.is_some()
            }
        }

        impl OwnedRow {
            /// The same row, borrowed.
            pub fn as_row(&self) -> LogRow<'_> {
                LogRow { $($field: borrow!($kind, self.$field),)+ }
            }

            pub(crate) fn of(view: &RowView<'_>) -> Self {
                Self { $($field: take!($kind, view, Column::$variant),)+ }
            }
        }

        /// Arrow builders, one for each column.
        #[derive(Default)]
        pub(crate) struct RowBuilders {
            rows: usize,
            bytes: usize,
            $($field: builder!($kind),)+
        }

        impl RowBuilders {
            pub(crate) fn rows(&self) -> usize {
                self.rows
            }

            /// About how many bytes the rows take in memory.
            pub(crate) fn bytes(&self) -> usize {
                self.bytes
            }

            /// Appends a row that takes about this many bytes.
            pub(crate) fn append(&mut self, row: &LogRow<'_>, bytes: usize) {
                self.rows += 1;
                self.bytes += bytes;
                $(append!($kind, self.$field, row.$field);)+
            }

            /// The rows that were appended since the last call.
            pub(crate) fn finish(&mut self) -> Result<RecordBatch, arrow_schema::ArrowError> {
                (self.rows, self.bytes) = (0, 0);
                let arrays: Vec<ArrayRef> = vec![$(finish!($kind, self.$field),)+];
                let arrays = arrays.into_iter().zip(SCHEMA.fields()).map(|(array, field)| typed(array, field));
                RecordBatch::try_new(Arc::clone(&SCHEMA), arrays.collect())
            }
        }
    };
}

columns! {
    /// ID of the request: the primary key of the log.
    RequestId request_id "request_id" required_text,
    /// Kind of call, for example `acompletion`.
    CallType call_type "call_type" required_text,
    /// SHA-256 of the key.
    ApiKey api_key "api_key" required_text,
    /// Spend in USD.
    Spend spend "spend" float,
    /// Total tokens: prompt and completion tokens.
    TotalTokens total_tokens "total_tokens" integer,
    /// Prompt tokens.
    PromptTokens prompt_tokens "prompt_tokens" integer,
    /// Completion tokens.
    CompletionTokens completion_tokens "completion_tokens" integer,
    /// Start of the call.
    StartTime start_time "startTime" time,
    /// End of the call.
    EndTime end_time "endTime" optional_time,
    /// Time of the first token.
    CompletionStartTime completion_start_time "completionStartTime" optional_time,
    /// Name of the model that was called.
    Model model "model" required_text,
    /// ID of the deployment that served the call.
    ModelId model_id "model_id" text,
    /// Public model name.
    ModelGroup model_group "model_group" text,
    /// Name of the provider.
    CustomLlmProvider custom_llm_provider "custom_llm_provider" text,
    /// Base URL of the provider.
    ApiBase api_base "api_base" text,
    /// User ID.
    User user "user" text,
    /// Metadata of the call, as JSON.
    Metadata metadata "metadata" text,
    /// Whether the response came from the cache: `True`, `False`, or null.
    CacheHit cache_hit "cache_hit" text,
    /// Cache key of the call.
    CacheKey cache_key "cache_key" text,
    /// Request tags, as JSON.
    RequestTags request_tags "request_tags" text,
    /// Team ID.
    TeamId team_id "team_id" text,
    /// End user ID.
    EndUser end_user "end_user" text,
    /// IP address of the client.
    RequesterIpAddress requester_ip_address "requester_ip_address" text,
    /// Messages of the call, as JSON. Null unless the day is archived with bodies.
    Messages messages "messages" text,
    /// Response of the call, as JSON. Null unless the day is archived with bodies.
    Response response "response" text,
    /// Request as the proxy received it, as JSON. Null unless the day is archived with bodies.
    ProxyServerRequest proxy_server_request "proxy_server_request" text,
    /// Session ID.
    SessionId session_id "session_id" text,
    /// `success` or `failure`.
    Status status "status" text,
    /// Name of the MCP tool that was called, with its namespace.
    McpNamespacedToolName mcp_namespaced_tool_name "mcp_namespaced_tool_name" text,
    /// Organisation ID.
    OrganizationId organization_id "organization_id" text,
    /// Agent ID.
    AgentId agent_id "agent_id" text,
    /// Duration of the call in milliseconds.
    RequestDurationMs request_duration_ms "request_duration_ms" optional_integer,
    /// Time when the row was written.
    CreatedAt created_at "created_at" optional_time,
    /// Time when the row was last changed.
    UpdatedAt updated_at "updated_at" optional_time,
    /// LiteLLM's call ID.
    LitellmCallId litellm_call_id "litellm_call_id" text,
    /// ID of the agent that is billed.
    BillingAgentId billing_agent_id "billing_agent_id" text,
}

/// The number of columns.
pub(crate) const COLUMNS: usize = Column::ALL.len();

/// The Arrow schema of the files.
pub(crate) static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let fields = Column::ALL.iter().map(|column| {
        let (data_type, nullable) = match column.kind() {
            Kind::RequiredText => (DataType::Utf8, false),
            Kind::Text => (DataType::Utf8, true),
            Kind::Float => (DataType::Float64, false),
            Kind::Integer => (DataType::Int32, false),
            Kind::OptionalInteger => (DataType::Int32, true),
            Kind::Time => (DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
            Kind::OptionalTime => (DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        };
        Field::new(column.name(), data_type, nullable)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
});

/// The same schema, but columns of which values repeat are dictionaries: each value once, and a number for each row.
pub(crate) static DICTIONARY_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let fields = Column::ALL.iter().zip(SCHEMA.fields()).map(|(column, field)| {
        if column.is_text() && column.has_dictionary() {
            let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
            Field::new(column.name(), dictionary, field.is_nullable())
        } else {
            Field::clone(field)
        }
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
});

impl Column {
    /// The column with LiteLLM's name `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|column| column.name() == name)
    }

    /// All columns but those that only a day with bodies has: messages, responses and requests.
    pub fn without_bodies() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|column| !column.is_body())
    }

    /// Columns that are null unless the day is archived with bodies.
    pub(crate) fn is_body(self) -> bool {
        matches!(self, Self::Messages | Self::Response | Self::ProxyServerRequest)
    }

    /// The column's position in the files, from 0.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    pub(crate) fn is_text(self) -> bool {
        matches!(self.kind(), Kind::RequiredText | Kind::Text)
    }

    /// Columns of free text: their values are long and nearly all different.
    pub(crate) fn is_document(self) -> bool {
        self == Self::Metadata || self.is_body()
    }

    /// Columns that are written with dictionaries. Ids and documents hardly ever repeat, and times have an encoding of their
    /// own.
    pub(crate) fn has_dictionary(self) -> bool {
        let is_time = matches!(self.kind(), Kind::Time | Kind::OptionalTime);
        !is_time && !self.is_document() && !matches!(self, Self::RequestId | Self::LitellmCallId | Self::SessionId)
    }

    /// Columns that have a bloom filter.
    pub(crate) fn has_bloom_filter(self) -> bool {
        matches!(self, Self::RequestId | Self::ApiKey | Self::User | Self::EndUser | Self::SessionId)
    }
}

/// Gives times their zone.
fn typed(array: ArrayRef, field: &Field) -> ArrayRef {
    let times = array.as_any().downcast_ref::<arrow_array::TimestampMicrosecondArray>();
    match (times, field.data_type()) {
        (Some(times), DataType::Timestamp(_, Some(zone))) => Arc::new(times.clone().with_timezone(Arc::clone(zone))),
        _ => array,
    }
}
