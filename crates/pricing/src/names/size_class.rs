//! Finds the names under which the price table lists models of Together AI, Fireworks AI and Databricks. The first two
//! have prices by size class. The class follows from the number of parameters in the model's name: 70 billion for
//! `llama-3-70b`. Fireworks AI also has short names for models, and Databricks has older names for endpoints.

use crate::table::PriceTable;

/// Together AI's size class for a model of Together AI that has no price of its own. Returns the name in lower case if
/// it states no size, or a size above all classes. Returns the names of all other models unchanged.
pub(crate) fn together(table: &PriceTable, model: &str, provider: &str) -> String {
    let is_together = provider == "together_ai" || model.contains("togethercomputer") || model.contains("together_ai");
    let own = model.strip_prefix("together_ai/").unwrap_or(model);
    let is_listed = || table.get(&format!("together_ai/{own}")).is_some_and(|prices| prices.has_input_price);
    if !is_together || is_listed() {
        return model.to_owned();
    }
    let lower = model.to_lowercase();
    // Sizes are whole numbers, so the class from 4.1 billion begins at 5.
    let class = match billions(&lower) {
        Some(0..=4) => "together-ai-up-to-4b",
        Some(5..=8) => "together-ai-4.1b-8b",
        Some(9..=21) => "together-ai-8.1b-21b",
        Some(22..=41) => "together-ai-21.1b-41b",
        Some(42..=80) => "together-ai-41.1b-80b",
        Some(81..=110) => "together-ai-81.1b-110b",
        _ => return lower,
    };
    class.to_owned()
}

/// Fireworks AI's size class for a model. The caller has checked that the model has no price of its own.
pub(crate) fn fireworks(model: &str) -> &'static str {
    let lower = model.to_lowercase();
    match mixture_billions(&lower) {
        Some(0..=56) => return "fireworks-ai-moe-up-to-56b",
        Some(57..=176) => return "fireworks-ai-56b-to-176b",
        _ => {}
    }
    match decimal_billions(&lower) {
        Some(size) if size <= 4.0 => "fireworks-ai-up-to-4b",
        Some(size) if size <= 16.0 => "fireworks-ai-4.1b-to-16b",
        Some(_) => "fireworks-ai-above-16b",
        None => "fireworks-ai-default",
    }
}

/// Fireworks AI's full resource name for the short name of a model or a router. A full name, a name with `#` and a name
/// of Foundry stay as they are. In all cases, the prefix `fireworks_ai/` is removed.
pub(crate) fn fireworks_resource(model: &str) -> String {
    let name = model.strip_prefix("fireworks_ai/").unwrap_or(model);
    if name.starts_with("accounts/") || name.starts_with(FOUNDRY_PREFIX) || name.contains('#') {
        name.to_owned()
    } else if name.starts_with("routers/") || name.starts_with("models/") {
        format!("accounts/fireworks/{name}")
    } else if name.ends_with("-fast")
        || matches!(name, "firerouter" | "auto" | "auto-instant")
        || name.starts_with("firerouter/")
    {
        format!("accounts/fireworks/routers/{name}")
    } else {
        format!("accounts/fireworks/models/{name}")
    }
}

/// Databricks' current name for an endpoint. An older name is recognised by its beginning. Any other name is returned
/// without the prefix `databricks/`.
pub(crate) fn databricks(model: &str) -> String {
    let name = model.strip_prefix("databricks/").unwrap_or(model);
    DATABRICKS_NAMES
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix))
        .map_or(name, |(_, current)| *current)
        .to_owned()
}

/// The prefix of Foundry's names for models of Fireworks AI.
const FOUNDRY_PREFIX: &str = "FW-";

/// The beginning of an older name, and the current name.
const DATABRICKS_NAMES: [(&str, &str); 7] = [
    ("dbrx-instruct", "databricks-dbrx-instruct"),
    ("meta-llama-3.1-70b-instruct", "databricks-meta-llama-3-1-70b-instruct"),
    ("meta-llama-3.1-405b-instruct", "databricks-meta-llama-3-1-405b-instruct"),
    ("mixtral-8x7b-instruct-v0.1", "databricks-mixtral-8x7b-instruct"),
    ("bge-large-en", "databricks-bge-large-en"),
    ("gte-large-en", "databricks-gte-large-en"),
    ("llama-2-70b-chat", "databricks-llama-2-70b-chat"),
];

/// The first whole number that is directly followed by a `b`. Decimal points are not recognised, and neither are words:
/// `0.5b` gives 5, and `4bit` gives 4.
fn billions(lower: &str) -> Option<u64> {
    numbers(lower).find_map(|(_, end, number)| lower.get(end..)?.starts_with('b').then_some(number))
}

/// Like [`billions`], but a `p` between two numbers is a decimal point: 0.5 for `0p5b`.
fn decimal_billions(lower: &str) -> Option<f64> {
    let numbers: Vec<_> = numbers(lower).collect();
    let is_size = |end: &usize| lower.get(*end..).is_some_and(|rest| rest.starts_with('b'));
    numbers.iter().enumerate().find_map(|(position, (start, end, _))| {
        let fraction = numbers.get(position + 1).filter(|(next, _, _)| lower.get(*end..*next) == Some("p"));
        let end = fraction.map(|(_, end, _)| *end).filter(is_size).or_else(|| Some(*end).filter(is_size))?;
        lower.get(*start..end)?.replace('p', ".").parse().ok()
    })
}

/// The size of a mixture of experts: the number of experts times the size of one, so 56 for `8x7b`.
fn mixture_billions(lower: &str) -> Option<u64> {
    let numbers: Vec<_> = numbers(lower).collect();
    numbers.windows(2).find_map(|pair| {
        let [(_, end, experts), (start, size_end, size)] = pair else {
            return None;
        };
        (lower.get(*end..*start)? == "x" && lower.get(*size_end..)?.starts_with('b'))
            .then(|| experts.saturating_mul(*size))
    })
}

/// Every run of digits: its start, its end (exclusive) and its value, or `u64::MAX` if the value is larger.
fn numbers(text: &str) -> impl Iterator<Item = (usize, usize, u64)> {
    let bytes = text.as_bytes();
    let mut position = 0;
    std::iter::from_fn(move || {
        let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        while position < bytes.len() && !is_digit(position) {
            position += 1;
        }
        let start = position;
        while is_digit(position) {
            position += 1;
        }
        let number = text.get(start..position).filter(|digits| !digits.is_empty())?;
        Some((start, position, number.parse().unwrap_or(u64::MAX)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_names() {
        assert_eq!(fireworks("mixtral-8x7b"), "fireworks-ai-moe-up-to-56b");
        assert_eq!(fireworks("mixtral-8x22b"), "fireworks-ai-56b-to-176b");
        assert_eq!(fireworks("llama-v3-70b"), "fireworks-ai-above-16b");
        assert_eq!(fireworks("phi"), "fireworks-ai-default");
        assert_eq!(fireworks("qwen2p5-0p5b"), "fireworks-ai-up-to-4b");
        assert_eq!(fireworks("qwen2p5-4p1b"), "fireworks-ai-4.1b-to-16b");
        assert_eq!(fireworks("qwen2p5-32b"), "fireworks-ai-above-16b");
        let table = PriceTable::embedded().unwrap();
        assert_eq!(together(&table, "acme/New-7B", "together_ai"), "together-ai-4.1b-8b");
        assert_eq!(together(&table, "acme/new", "together_ai"), "acme/new");
        assert_eq!(together(&table, "acme/new-7b", "openai"), "acme/new-7b");
    }
}
