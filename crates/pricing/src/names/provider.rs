//! Determines the provider of a model name: by its prefix (`azure/gpt-4o`), else by its entry in the price table, else
//! by the shape of the name. The lists are those of LiteLLM 1.110.2. To add a provider, add it to [`PROVIDERS`].

use crate::names::provider_lists::{
    BEDROCK_MODELS, COHERE_EMBEDDING_MODELS, PROVIDERS, REPLICATE_MODELS, ROUTED_PREFIXES,
};
use crate::table::PriceTable;

const AZURE_NAMES: [(&str, &str); 6] = [
    ("gpt-35-turbo", "azure/gpt-35-turbo"),
    ("gpt-35-turbo-instruct", "azure/gpt-35-turbo-instruct"),
    ("azure/gpt-41", "gpt-4.1"),
    ("azure/gpt-41-mini", "gpt-4.1-mini"),
    ("azure/gpt-41-nano", "gpt-4.1-nano"),
    ("ada", "azure/ada"),
];

/// The length of a Replicate version, the last part of `owner/model:VERSION`.
const REPLICATE_VERSION_LENGTH: usize = 64;

/// A model's provider, and its name without the provider's prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub model: String,
    pub provider: String,
}

impl Route {
    fn new(model: &str, provider: &str) -> Option<Self> {
        Some(Self { model: model.to_owned(), provider: provider.to_owned() })
    }
}

/// Whether `name` is a provider that names in the price table may start with.
pub(crate) fn is_provider(name: &str) -> bool {
    PROVIDERS.binary_search(&name).is_ok()
}

/// The table's name for a model for which Azure uses another name.
pub(crate) fn azure_alias(model: &str) -> Option<&'static str> {
    AZURE_NAMES.iter().find(|(name, _)| *name == model).map(|(_, alias)| *alias)
}

/// Whether `model` is Azure's own name for an OpenAI chat model. `ada` is an embedding model.
pub(crate) fn is_azure_chat_name(model: &str) -> bool {
    model != "ada" && azure_alias(model).is_some()
}

/// Finds the provider of a model name. `None` if no rule matches the name. An alias at that provider gives the name of
/// the model that it stands for.
pub(crate) fn route(table: &PriceTable, model: &str) -> Option<Route> {
    let route = route_as_named(table, model)?;
    let prefix = format!("{}/", route.provider);
    let target = alias_target(table, &format!("{prefix}{}", route.model), &route.provider)
        .or_else(|| alias_target(table, &route.model, &route.provider));
    let named = target.map(|target| target.strip_prefix(&prefix).unwrap_or(target).to_owned());
    Some(Route { model: named.unwrap_or(route.model), provider: route.provider })
}

/// The model that an alias stands for, if requests for the alias go to `provider`: the provider in front of the alias,
/// or else the provider of the model.
fn alias_target<'a>(table: &'a PriceTable, alias: &str, provider: &str) -> Option<&'a str> {
    let prices = table.get(alias).filter(|prices| prices.name != alias)?;
    let prefix = alias.split_once('/').map(|(prefix, _)| prefix).filter(|prefix| is_provider(prefix));
    (prefix.unwrap_or(&prices.provider) == provider).then_some(prices.name.as_str())
}

fn route_as_named(table: &PriceTable, model: &str) -> Option<Route> {
    let (prefix, rest) = match model.split_once('/') {
        Some((prefix, rest)) => (prefix, Some(rest)),
        None => (model, None),
    };
    if let Some(rest) = rest {
        match prefix {
            // Azure AI Studio serves these models through an OpenAI-compatible interface.
            "azure" if is_azure_guest(table, rest) => return Route::new(model, "openai"),
            "cohere" if table.provider_of(rest) == "cohere_chat" => {
                return Route::new(rest, "cohere_chat");
            }
            "anthropic" if is_anthropic_text_model(rest) => {
                return Route::new(rest, "anthropic_text");
            }
            "bedrock_mantle" => {
                return Route::new(crate::names::bedrock::split_mantle_region(rest).1, prefix);
            }
            // RAGFlow's names contain an agent: ragflow/chat/ID/MODEL.
            "ragflow" => return None,
            _ => {}
        }
        if is_provider(prefix) || ROUTED_PREFIXES.binary_search(&prefix).is_ok() {
            return Route::new(rest, prefix);
        }
    } else if is_provider(prefix) {
        return None;
    }
    let provider = provider_of_bare_name(table, model).or_else(|| provider_by_shape(model))?;
    Route::new(model, provider)
}

fn is_azure_guest(table: &PriceTable, model: &str) -> bool {
    table.provider_of(model) == "cohere_chat" || table.provider_of(&format!("mistral/{model}")) == "mistral"
}

fn is_anthropic_text_model(model: &str) -> bool {
    matches!(model, "claude-2" | "claude-instant-1")
}

fn provider_of_bare_name(table: &PriceTable, model: &str) -> Option<&'static str> {
    let listed = table.provider_of(model);
    if table.is_openai_model(model)
        || model.contains("ft:gpt-3.5-turbo")
        || model.contains("ft:gpt-4")
        || model.starts_with("gpt-image")
        || model == "sora-2"
    {
        return Some("openai");
    }
    match listed {
        "text-completion-openai" => return Some("text-completion-openai"),
        "anthropic" if is_anthropic_text_model(model) => return Some("anthropic_text"),
        "anthropic" => return Some("anthropic"),
        "cohere" => return Some("cohere"),
        "cohere_chat" => return Some("cohere_chat"),
        _ => {}
    }
    if COHERE_EMBEDDING_MODELS.binary_search(&model).is_ok() {
        return Some("cohere");
    }
    let is_replicate = REPLICATE_MODELS.binary_search(&model).is_ok();
    if is_replicate || (model.contains(':') && model.chars().count() > REPLICATE_VERSION_LENGTH) {
        let version = model.split(':').nth(1);
        let has_version = version.is_some_and(|version| version.chars().count() == REPLICATE_VERSION_LENGTH);
        return (is_replicate || has_version).then_some("replicate");
    }
    match listed {
        "openrouter" => return Some("openrouter"),
        "vertex_ai-chat-models"
        | "vertex_ai-code-chat-models"
        | "vertex_ai-text-models"
        | "vertex_ai-code-text-models"
        | "vertex_ai-language-models"
        | "vertex_ai-embedding-models"
        | "vertex_ai-vision-models" => return Some("vertex_ai"),
        _ => {}
    }
    if matches!(table.provider_of(&format!("vertex_ai/{model}")), "vertex_ai-image-models" | "vertex_ai-video-models")
        || matches!(listed, "vertex_ai-image-models" | "vertex_ai-video-models")
    {
        return Some("vertex_ai");
    }
    match listed {
        "ai21" => Some("ai21_chat"),
        "aleph_alpha" => Some("aleph_alpha"),
        "baseten" => Some("baseten"),
        "nlp_cloud" => Some("nlp_cloud"),
        "bedrock_converse" => Some("bedrock"),
        "bedrock" if is_bedrock_model(table, model) => Some("bedrock"),
        _ if BEDROCK_MODELS.binary_search(&model).is_ok() => Some("bedrock"),
        "watsonx" => Some("watsonx"),
        "empower" => Some("empower"),
        "gradient_ai" => Some("gradient_ai"),
        _ if model == "petals-team/StableBeluga2" => Some("petals"),
        _ if model == "*" => Some("openai"),
        _ if model.starts_with("amazon_nova") => Some("amazon_nova"),
        _ => None,
    }
}

/// Entries for committed throughput and for guardrails are prices, not models.
fn is_bedrock_model(table: &PriceTable, model: &str) -> bool {
    let is_guardrail = table.get(model).is_some_and(|prices| prices.mode.as_deref() == Some("guardrail"));
    !is_guardrail && !model.contains("month-commitment")
}

/// Routes new models of a known family before the table lists them. Such a model has no price until the table lists it,
/// or lists its name without the region.
fn provider_by_shape(model: &str) -> Option<&'static str> {
    let lower = model.to_lowercase();
    let region_free = match lower.split_once('.') {
        Some((region, rest)) if !region.is_empty() && region.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') => {
            rest
        }
        _ => lower.as_str(),
    };
    if lower.starts_with("anthropic.claude-") || region_free.starts_with("anthropic.claude-") {
        return Some("bedrock");
    }
    if is_claude_version(&lower) {
        return Some("anthropic");
    }
    matches!(lower.as_str(), "jev-latest" | "jev-preview" | "jev-1.13.0" | "jev-1.14.0").then_some("typesafe")
}

/// `claude-FAMILY-MAJOR`, optionally with a minor version and a date: `claude-opus-5-1-20270101`.
fn is_claude_version(lower: &str) -> bool {
    let Some((family, version)) = lower.strip_prefix("claude-").and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_date = |part: &str| part.len() == 8 && is_number(part);
    let numbers: Vec<&str> = version.split('-').collect();
    let is_major_minor =
        |part: &str| part.split_once('.').is_some_and(|(major, minor)| is_number(major) && is_number(minor));
    !family.is_empty()
        && family.bytes().all(|b| b.is_ascii_lowercase())
        && match numbers.as_slice() {
            [version] => is_number(version) || is_major_minor(version),
            [version, last] => (is_number(version) && is_number(last)) || (is_major_minor(version) && is_date(last)),
            [major, minor, date] => is_number(major) && is_number(minor) && is_date(date),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(model: &str) -> Option<(String, String)> {
        let table = PriceTable::embedded().unwrap();
        route(&table, model).map(|route| (route.model, route.provider))
    }

    #[test]
    fn names_are_routed_by_prefix_entry_or_shape() {
        let pair = |model: &str, provider: &str| Some((model.to_owned(), provider.to_owned()));
        assert_eq!(provider("openai/gpt-4o"), pair("gpt-4o", "openai"));
        assert_eq!(provider("gpt-4o"), pair("gpt-4o", "openai"));
        assert_eq!(
            provider("openrouter/anthropic/claude-3.5-sonnet"),
            pair("anthropic/claude-3.5-sonnet", "openrouter")
        );
        assert_eq!(provider("cohere/command-r"), pair("command-r", "cohere_chat"));
        assert_eq!(provider("ft:gpt-4o:acme::1"), pair("ft:gpt-4o:acme::1", "openai"));
        assert_eq!(provider("claude-novel-9"), pair("claude-novel-9", "anthropic"));
        assert_eq!(
            provider("apac.anthropic.claude-novel-9-v1:0"),
            pair("apac.anthropic.claude-novel-9-v1:0", "bedrock")
        );
        assert_eq!(provider("no-such-model"), None);
        assert_eq!(provider("mistral"), None);
        assert_eq!(provider(""), None);
    }

    #[test]
    fn the_lists_are_sorted() {
        assert!(PROVIDERS.is_sorted());
        assert!(ROUTED_PREFIXES.is_sorted());
        assert!(REPLICATE_MODELS.is_sorted());
        assert!(BEDROCK_MODELS.is_sorted());
        assert!(COHERE_EMBEDDING_MODELS.is_sorted());
    }
}
