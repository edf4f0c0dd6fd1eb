//! Chooses the encoding with which the tokens for a model name are counted.
//!
//! - Claude 2 and Claude 4 names: Anthropic's published tokenizer
//! - `DeepSeek` names: `DeepSeek`'s tokenizer
//! - OpenAI names: `o200k_base` or `cl100k_base`
//! - all other names: `cl100k_base`
//!
//! The vocabularies of Llama and Command R are not part of the program. LiteLLM downloads them, and counts with
//! `cl100k_base` if it can't.

use crate::names::provider;
use crate::table::PriceTable;
use crate::tokens::encoding::Encoding;

/// The names and prefixes that tiktoken knows, grouped by the encoding that it uses for them.
const O200K_NAMES: [&str; 6] = ["o1", "o3", "o4-mini", "gpt-5", "gpt-4.1", "gpt-4o"];
const O200K_PREFIXES: [&str; 10] =
    ["o1-", "o3-", "o4-mini-", "gpt-5", "gpt-4.5-", "gpt-4.1-", "chatgpt-4o-", "gpt-4o-", "gpt-oss-", "ft:gpt-4o"];
const CL100K_NAMES: [&str; 9] = [
    "gpt-4",
    "gpt-3.5-turbo",
    "gpt-3.5",
    "gpt-35-turbo",
    "davinci-002",
    "babbage-002",
    "text-embedding-ada-002",
    "text-embedding-3-small",
    "text-embedding-3-large",
];
const CL100K_PREFIXES: [&str; 7] =
    ["gpt-4-", "gpt-3.5-turbo-", "gpt-35-turbo-", "ft:gpt-4", "ft:gpt-3.5-turbo", "ft:davinci-002", "ft:babbage-002"];

/// The model that stands in for every name that is not OpenAI's.
const OTHER: &str = "gpt-3.5-turbo";

/// The encoding for a model name.
pub(crate) fn encoding(table: &PriceTable, model: &str) -> Encoding {
    if table.provider_of(model) == "anthropic" && !model.contains("claude-3") {
        return Encoding::Anthropic;
    }
    if is_deepseek(model) {
        return Encoding::DeepSeek;
    }
    let name = openai_name(table, model).unwrap_or_else(|| base_name(table, model));
    if name.contains("gpt-4o") {
        return Encoding::O200k;
    }
    known(&name)
        .or_else(|| suffixed(&name))
        .unwrap_or_else(|| if is_listed_for_other_use(table, &name) { Encoding::Cl100k } else { Encoding::O200k })
}

/// The model name that determines the fixed number of tokens per message.
pub(crate) fn base_name(table: &PriceTable, model: &str) -> String {
    if provider::is_azure_chat_name(model) {
        model.replace("-35", "-3.5")
    } else if table.is_openai_model(model) {
        model.to_owned()
    } else {
        OTHER.to_owned()
    }
}

/// Matches `deepseek-v3`, `deepseek-chat-v4`, and the plain names of `DeepSeek`'s own models.
fn is_deepseek(model: &str) -> bool {
    let lower = model.to_lowercase();
    let has_version = lower.match_indices("deepseek").any(|(start, name)| {
        let rest = lower.get(start + name.len()..).unwrap_or_default();
        let separated = |text: &str| text.strip_prefix(['-', '_', '.']).map(str::to_owned);
        let Some(rest) = separated(rest) else {
            return false;
        };
        let after_chat = rest.strip_prefix("chat").and_then(separated);
        [Some(rest), after_chat].iter().flatten().any(|rest| rest.starts_with("v3") || rest.starts_with("v4"))
    });
    let plain = lower.strip_suffix(":free").unwrap_or(&lower);
    let plain = plain.rsplit('/').next().unwrap_or(plain);
    has_version || matches!(plain, "deepseek-chat" | "deepseek-reasoner" | "deepseek-flash")
}

fn known(name: &str) -> Option<Encoding> {
    if O200K_NAMES.contains(&name) {
        Some(Encoding::O200k)
    } else if CL100K_NAMES.contains(&name) {
        Some(Encoding::Cl100k)
    } else if O200K_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        Some(Encoding::O200k)
    } else if CL100K_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        Some(Encoding::Cl100k)
    } else {
        None
    }
}

/// A variant is counted like the name that it extends: `text-embedding-ada-002-v2` like `text-embedding-ada-002`.
fn suffixed(name: &str) -> Option<Encoding> {
    let names = O200K_NAMES.iter().chain(&CL100K_NAMES);
    let longest = names
        .filter(|known| name.strip_prefix(**known).is_some_and(|rest| rest.starts_with('-')))
        .max_by_key(|known| known.len())?;
    known(longest)
}

/// The OpenAI model that a name stands for, whatever prefixes it has. `None` if it is not an OpenAI model.
fn openai_name(table: &PriceTable, model: &str) -> Option<String> {
    let last = model.rsplit('/').next().unwrap_or(model);
    let is_listed =
        suffixes(model).any(|name| is_openai_entry(table, name) || is_openai_entry(table, &format!("azure/{name}")));
    // GPT-OSS is the one open model with OpenAI's newer vocabulary. It has its own name and does not count as OpenAI's.
    let is_o200k = known(last) == Some(Encoding::O200k) && !last.starts_with("gpt-oss-");
    if is_listed || is_o200k || is_versioned(last) {
        return Some(last.to_owned());
    }
    let deployment = match last.strip_prefix("ft:") {
        Some(rest) => rest.split(':').next().unwrap_or(rest),
        None => last,
    };
    let entry = table.get(&format!("azure/{deployment}"))?;
    let is_chat = matches!(entry.mode.as_deref(), Some("chat" | "responses"));
    (entry.provider == "azure" && is_chat && deployment.starts_with("gpt-")).then(|| deployment.to_owned())
}

/// Yields the name, then the name without its first segment, without its first two, and so on.
fn suffixes(model: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(model);
    std::iter::from_fn(move || {
        let name = rest?;
        rest = name.split_once('/').map(|(_, shorter)| shorter);
        Some(name)
    })
}

fn is_openai_entry(table: &PriceTable, name: &str) -> bool {
    if provider::is_azure_chat_name(name) || table.is_openai_model(name) {
        return true;
    }
    let Some(entry) = table.get(name) else {
        return false;
    };
    let is_text = matches!(entry.mode.as_deref(), Some("chat" | "completion" | "responses" | "realtime"));
    let last = name.rsplit('/').next().unwrap_or(name);
    entry.provider == "azure" && is_text && is_openai_model_name(table, last)
}

fn is_openai_model_name(table: &PriceTable, name: &str) -> bool {
    let is_variant =
        |longer: &str, shorter: &str| longer.strip_prefix(shorter).is_some_and(|rest| rest.starts_with('-'));
    table.is_openai_model(name)
        || known(name).is_some()
        || table.openai_models().iter().any(|listed| is_variant(name, listed) || is_variant(listed, name))
}

/// Matches names in the form of future releases: `gpt-6.2`, `o7-mini`.
fn is_versioned(name: &str) -> bool {
    let (rest, smallest) = match name.strip_prefix("gpt-") {
        Some(rest) => (rest, 5),
        None => match name.strip_prefix('o') {
            Some(rest) => (rest, 1),
            None => return false,
        },
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (number, after) = rest.split_at_checked(digits).unwrap_or_default();
    !number.starts_with('0')
        && number.parse::<u64>().is_ok_and(|number| number >= smallest)
        && (after.is_empty() || after.starts_with(['.', '-']))
}

fn is_listed_for_other_use(table: &PriceTable, name: &str) -> bool {
    let has_other_mode = |name: &str| {
        table
            .get(name)
            .and_then(|entry| entry.mode.as_deref())
            .is_some_and(|mode| !matches!(mode, "chat" | "responses"))
    };
    has_other_mode(name) || has_other_mode(&format!("azure/{name}"))
}
