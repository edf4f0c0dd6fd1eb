//! Counts the tokens of a message list before it is sent, as LiteLLM estimates them.
//!
//! Each message costs the tokens of its texts plus a fixed number. The list costs three more tokens for the start of
//! the reply. Only text that the model reads is counted: every string in a message (the role, the content, a name, and
//! unknown fields too), the arguments of tool calls, and the parts of content lists. Images cost tokens by size; see
//! [`crate::tokens::images`].

pub(crate) mod bpe;
pub(crate) mod encoding;
pub(crate) mod images;
pub(crate) mod split;
pub(crate) mod tokenizer;

use serde_json::{Map, Value};
use unicode_general_category::{GeneralCategory as Category, get_general_category};

use crate::PricingError;
use crate::table::PriceTable;
use crate::tokens::encoding::Encoding;
use crate::usage::is_truthy;

type Object = Map<String, Value>;

/// Tokens for the start of the reply, per message list.
const REPLY_START: u64 = 3;

/// The deepest nesting of content blocks. Deeper ones are refused, because requests are untrusted and counting is
/// recursive.
const DEEPEST_CONTENT: u32 = 32;

/// How the messages for a model are counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessageCounter {
    encoding: Encoding,
    per_message: u64,
    /// Tokens added for a `name`. Negative for the oldest chat model, which omits the role if there is a name.
    per_name: i64,
}

impl MessageCounter {
    /// The counter for a model name, as requested or as listed.
    pub(crate) fn new(table: &PriceTable, model: &str) -> Self {
        let is_oldest = tokenizer::base_name(table, model) == "gpt-3.5-turbo-0301";
        Self {
            encoding: tokenizer::encoding(table, model),
            per_message: if is_oldest { 4 } else { 3 },
            per_name: if is_oldest { -1 } else { 1 },
        }
    }

    /// Counts a message list. An empty list costs nothing.
    ///
    /// # Errors
    /// [`PricingError::InvalidMessages`] if a message or a content part can't be counted.
    pub(crate) fn count(&self, messages: &[Value]) -> Result<u64, PricingError> {
        if messages.is_empty() {
            return Ok(0);
        }
        let mut total = REPLY_START;
        for message in messages {
            let Value::Object(message) = message else {
                return Err(invalid("every message must be an object"));
            };
            total += self.message(message)?;
        }
        Ok(total)
    }

    fn message(&self, message: &Object) -> Result<u64, PricingError> {
        let mut total = self.per_message;
        for (field, value) in message {
            total += match (field.as_str(), value) {
                ("tool_calls", Value::Null) | ("function_call", Value::Null) => 0,
                ("tool_calls", calls) => self.tool_calls(calls)?,
                ("function_call", Value::Object(call)) => self.arguments(call),
                ("function_call", _) => return Err(invalid("function_call must be an object")),
                ("name", Value::String(name)) => {
                    let tokens = self.text(name);
                    total = total.saturating_add_signed(self.per_name);
                    tokens
                }
                (_, Value::String(text)) => self.text(text),
                ("content", Value::Array(parts)) => self.parts(parts, 0)?,
                ("provider_specific_fields", fields) => self.compactions(fields),
                ("search_results", Value::Array(results)) => self.search_results(results),
                _ => 0,
            };
        }
        Ok(total)
    }

    fn text(&self, text: &str) -> u64 {
        self.encoding.count(text)
    }

    fn tool_calls(&self, calls: &Value) -> Result<u64, PricingError> {
        let Value::Array(calls) = calls else {
            return Err(invalid("tool_calls must be a list"));
        };
        let mut total = 0;
        for call in calls {
            match call.get("function") {
                Some(Value::Object(function)) => total += self.arguments(function),
                _ => return Err(invalid("every tool call must have a function")),
            }
        }
        Ok(total)
    }

    fn arguments(&self, function: &Object) -> u64 {
        match function.get("arguments") {
            None => 0,
            Some(arguments) => self.text(&as_python_text(arguments)),
        }
    }

    fn parts(&self, parts: &[Value], depth: u32) -> Result<u64, PricingError> {
        if depth > DEEPEST_CONTENT {
            return Err(invalid("content is nested too deeply"));
        }
        let mut total = 0;
        for part in parts {
            total += match part {
                Value::String(text) => self.text(text),
                Value::Object(part) => self.part(part, depth)?,
                _ => return Err(invalid("a content part must be text or an object")),
            };
        }
        Ok(total)
    }

    fn part(&self, part: &Object, depth: u32) -> Result<u64, PricingError> {
        let kind = part.get("type").and_then(Value::as_str);
        let text_of = |field: &str| part.get(field).map_or(0, |value| self.truthy_text(value));
        match kind {
            Some("text") => Ok(text_of("text")),
            Some("thinking" | "redacted_thinking") => Ok(text_of("thinking")),
            Some("compaction") => Ok(text_of("content")),
            Some("tool_reference") => Ok(text_of("tool_name")),
            Some("image_url") => images::count_image_url(part.get("image_url")),
            Some("image") => images::count_source(part.get("source")),
            Some("document") => self.document(part, depth),
            Some("file") => Ok(self.file(part.get("file"))),
            Some("tool_use") => self.fields(part, &["name", "input", "caller"], depth),
            Some("tool_result") => self.fields(part, &["content"], depth),
            Some("search_result") => self.fields(part, &["source", "title", "content"], depth),
            Some(other) => self.server_tool(other, part, depth),
            None => Err(invalid("a content part must have a type")),
        }
    }

    /// Counts the text of a field. An empty string or container, zero, false and null count as 0 tokens.
    fn truthy_text(&self, value: &Value) -> u64 {
        if is_truthy(value) { self.text(&as_python_text(value)) } else { 0 }
    }

    fn fields(&self, part: &Object, names: &[&str], depth: u32) -> Result<u64, PricingError> {
        let mut total = 0;
        for name in names {
            total += match part.get(*name) {
                Some(Value::String(text)) => self.text(text),
                Some(Value::Array(parts)) => self.parts(parts, depth + 1)?,
                object => self.object_text(object),
            };
        }
        Ok(total)
    }

    /// Counts the call or the result of a tool that Anthropic runs itself.
    fn server_tool(&self, kind: &str, part: &Object, depth: u32) -> Result<u64, PricingError> {
        let names = server_tool_fields(kind).ok_or_else(|| {
            invalid(
                "a content part must be of type text, image_url, image, document, file, tool_use, tool_result, \
                 thinking, redacted_thinking, compaction, tool_reference, search_result, or a part of a tool that \
                 Anthropic runs",
            )
        })?;
        match part.get("content") {
            Some(Value::Object(result)) if names.contains(&"content") => {
                let others: Vec<&str> = names.iter().copied().filter(|name| *name != "content").collect();
                Ok(self.fields(part, &others, depth)? + self.result(result, depth + 1)?)
            }
            _ => self.fields(part, names, depth),
        }
    }

    /// Counts the content of a server tool's part, if that is one object and not a list.
    fn result(&self, result: &Object, depth: u32) -> Result<u64, PricingError> {
        if depth > DEEPEST_CONTENT {
            return Err(invalid("content is nested too deeply"));
        }
        let kind = result.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "document" if is_anthropic_document(result) => self.document(result, depth),
            "tool_use" | "tool_result" | "search_result" => self.part(result, depth),
            kind if server_tool_fields(kind).is_some() => self.part(result, depth),
            _ => Err(invalid("the content of a server tool's part must be a document or a part of a tool")),
        }
    }

    fn object_text(&self, value: Option<&Value>) -> u64 {
        match value {
            Some(object @ Value::Object(_)) => self.text(&as_python_text(object)),
            Some(Value::String(text)) => self.text(text),
            _ => 0,
        }
    }

    fn document(&self, part: &Object, depth: u32) -> Result<u64, PricingError> {
        let Some(Value::Object(source)) = part.get("source") else {
            return Err(invalid("a document must have a source"));
        };
        let mut total = 0;
        for field in ["title", "context"] {
            total += match part.get(field) {
                Some(Value::String(text)) => self.text(text),
                _ => 0,
            };
        }
        let kind = source.get("type").and_then(Value::as_str);
        total += match (kind, source.get("data"), source.get("content")) {
            (Some("text"), Some(Value::String(text)), _) => self.text(text),
            (Some("content"), _, Some(Value::String(text))) => self.text(text),
            (Some("content"), _, Some(Value::Array(parts))) => self.parts(parts, depth + 1)?,
            (Some("text" | "content"), _, _) | (None, _, _) => {
                return Err(invalid("a document's source must have a type and data"));
            }
            (Some(_), _, _) => images::count_source(part.get("source"))?,
        };
        Ok(total)
    }

    /// Counts a file: its name, plus its data counted as one image.
    fn file(&self, file: Option<&Value>) -> u64 {
        let Some(Value::Object(file)) = file else {
            return 0;
        };
        let text = |field: &str| file.get(field).and_then(Value::as_str).unwrap_or_default();
        let name = self.text(text("filename"));
        match text("file_data") {
            "" => name,
            data => name + images::count_inline(data),
        }
    }

    fn compactions(&self, fields: &Value) -> u64 {
        let blocks = fields.get("compaction_blocks").and_then(Value::as_array);
        let is_compaction = |block: &&Value| block.get("type").and_then(Value::as_str) == Some("compaction");
        blocks
            .into_iter()
            .flatten()
            .filter(is_compaction)
            .filter_map(|block| block.get("content").and_then(Value::as_str))
            .map(|content| self.text(content))
            .sum()
    }

    fn search_results(&self, results: &[Value]) -> u64 {
        let mut texts = String::new();
        for result in results.iter().filter(|result| result.is_object()) {
            for field in ["source", "title"] {
                texts += result.get(field).and_then(Value::as_str).unwrap_or_default();
            }
            let blocks = result.get("content").and_then(Value::as_array);
            for block in blocks.into_iter().flatten() {
                texts += block.get("text").and_then(Value::as_str).unwrap_or_default();
            }
            if let Some(citations) = result.get("citations").filter(|value| !value.is_null()) {
                texts += &citations.to_string();
            }
        }
        self.text(&texts)
    }
}

/// The fields that are counted of a part that belongs to a tool of Anthropic's servers. `None` for other parts.
fn server_tool_fields(kind: &str) -> Option<&'static [&'static str]> {
    let fields: &[&str] = match kind {
        "server_tool_use" | "mcp_tool_use" => &["name", "input"],
        "web_search_tool_result"
        | "web_fetch_tool_result"
        | "code_execution_tool_result"
        | "bash_code_execution_tool_result"
        | "text_editor_code_execution_tool_result"
        | "mcp_tool_result"
        | "text_editor_code_execution_view_result" => &["content"],
        "web_search_result" => &["url", "title", "snippet"],
        "web_fetch_result" => &["url", "content"],
        "code_execution_result" | "bash_code_execution_result" => &["stdout", "stderr", "content"],
        "encrypted_code_execution_result" => &["stderr", "content"],
        "text_editor_code_execution_str_replace_result" => &["lines"],
        "text_editor_code_execution_create_result" | "code_execution_output" | "bash_code_execution_output" => &[],
        "text_editor_code_execution_tool_result_error" => &["error_code", "error_message"],
        "web_search_tool_result_error"
        | "web_fetch_tool_result_error"
        | "code_execution_tool_result_error"
        | "bash_code_execution_tool_result_error" => &["error_code"],
        _ => return None,
    };
    Some(fields)
}

/// Whether a document inside a tool's result has the fields that Anthropic's API documents.
fn is_anthropic_document(document: &Object) -> bool {
    let is_text = |object: &Object, field: &str| object.get(field).is_some_and(Value::is_string);
    let is_optional_text = |field: &str| !document.contains_key(field) || is_text(document, field);
    let Some(Value::Object(source)) = document.get("source") else {
        return false;
    };
    let is_source = match source.get("type").and_then(Value::as_str) {
        Some("base64") => is_text(source, "media_type") && is_text(source, "data"),
        Some("url") => is_text(source, "url"),
        Some("file") => is_text(source, "file_id"),
        Some("text") => {
            source.get("media_type").and_then(Value::as_str) == Some("text/plain") && is_text(source, "data")
        }
        Some("content") => matches!(source.get("content"), Some(Value::String(_) | Value::Array(_))),
        _ => false,
    };
    is_source && is_optional_text("title") && is_optional_text("context")
}

/// Formats a value as Python prints it, because that is the text that LiteLLM counts. A string stays as it is.
fn as_python_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => {
            let mut text = String::new();
            write_python(other, &mut text);
            text
        }
    }
}

fn write_python(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => write_python_string(text, out),
        Value::Array(items) => {
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push_str(", ");
                }
                write_python(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (position, (name, item)) in fields.iter().enumerate() {
                if position > 0 {
                    out.push_str(", ");
                }
                write_python_string(name, out);
                out.push_str(": ");
                write_python(item, out);
            }
            out.push('}');
        }
    }
}

fn write_python_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..0x100 => format!("\\x{code:02x}"),
                    0x100..0x1_0000 => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    out.push(quote);
}

fn is_printable(c: char) -> bool {
    c == ' '
        || !matches!(
            get_general_category(c),
            Category::Control
                | Category::Format
                | Category::Surrogate
                | Category::PrivateUse
                | Category::Unassigned
                | Category::LineSeparator
                | Category::ParagraphSeparator
                | Category::SpaceSeparator
        )
}

/// Counts the characters of a prompt that Google bills: texts and tool arguments, without white space.
pub(crate) fn prompt_characters(messages: &[Value]) -> Result<u64, PricingError> {
    let mut total: u64 = 0;
    for message in messages {
        match message.get("content") {
            Some(Value::String(text)) => total += crate::usage::response::characters(text),
            Some(Value::Array(parts)) => {
                for part in parts {
                    if part.is_string() {
                        // LiteLLM fails on string parts for models that Google bills by character.
                        return Err(invalid("a content part must be an object for this model"));
                    }
                    if part.get("type").and_then(Value::as_str) == Some("text") {
                        let text = part.get("text").and_then(Value::as_str);
                        let text = text.ok_or_else(|| invalid("a text part must have a text"))?;
                        total += crate::usage::response::characters(text);
                    }
                }
            }
            _ => {}
        }
        let calls = message.get("tool_calls").and_then(Value::as_array);
        for call in calls.into_iter().flatten() {
            if let Some(function) = call.get("function") {
                let arguments = function.get("arguments").and_then(Value::as_str);
                let arguments = arguments.ok_or_else(|| invalid("a tool call must have arguments"))?;
                total += crate::usage::response::characters(arguments);
            }
        }
    }
    Ok(total)
}

pub(crate) fn invalid(reason: &'static str) -> PricingError {
    PricingError::InvalidMessages { reason }
}
