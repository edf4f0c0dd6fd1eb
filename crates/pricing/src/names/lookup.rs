//! Finds the entry that prices a model name. Tries the forms of the name in LiteLLM's order.

use std::sync::Arc;

use crate::names::{bedrock, provider, size_class};
use crate::table::PriceTable;
use crate::table::prices::ModelPrices;

/// Finds the entry for a model at a provider. Tries every form of the name. Hugging Face models always get a free
/// entry; Ollama models get one if the table does not list them.
pub(crate) fn lookup(table: &PriceTable, model: &str, provider: Option<&str>) -> Option<Arc<ModelPrices>> {
    let model = provider::azure_alias(model).unwrap_or(model);
    let provider = match provider {
        Some("vertex_ai_beta") => Some("vertex_ai"),
        other => other,
    };
    let vertex_name = match provider {
        Some("vertex_ai") => vertex_listed_name(table, model),
        _ => None,
    };
    let model = vertex_name.as_deref().unwrap_or(model);
    match (listed(table, model, provider), provider) {
        (_, Some(local @ "huggingface")) => Some(Arc::new(free_entry(model, local))),
        (None, Some(local @ ("ollama" | "ollama_chat"))) if !is_listed_for_ollama(table, model) => {
            Some(Arc::new(free_entry(model, local)))
        }
        (found, _) => found.map(Arc::clone),
    }
}

/// Whether the table lists the name, in any letter case, for Ollama or for any other provider. If it does, LiteLLM
/// doesn't take the name for a model that only the local server knows.
fn is_listed_for_ollama(table: &PriceTable, model: &str) -> bool {
    let bare = ["ollama/", "ollama_chat/"].iter().find_map(|prefix| model.strip_prefix(prefix)).unwrap_or(model);
    [model, bare, &format!("ollama/{bare}"), &format!("ollama_chat/{bare}")]
        .into_iter()
        .any(|name| table.get_ignoring_case(name).is_some())
}

/// Finds only entries that the table lists. Unlike [`lookup`], it applies no Azure or Vertex AI aliases and creates no
/// free entries for local servers.
fn listed<'a>(table: &'a PriceTable, model: &str, provider: Option<&str>) -> Option<&'a Arc<ModelPrices>> {
    let names = Names::new(table, model, provider);
    names.in_order(model).into_iter().find_map(|name| {
        table.get_ignoring_case(name).filter(|prices| fits(&prices.provider, names.provider.as_deref()))
    })
}

/// The forms of one name, in which it is looked up.
struct Names {
    provider: Option<String>,
    combined: String,
    region_free: String,
    split: String,
    combined_stripped: String,
    stripped: String,
    prefixed: String,
}

impl Names {
    fn new(table: &PriceTable, model: &str, provider: Option<&str>) -> Self {
        let mut names = match provider {
            None => {
                let route = provider::route(table, model);
                let (split, provider) = match route {
                    Some(route) => (route.model, Some(route.provider)),
                    None => (model.to_owned(), None),
                };
                let stripped = strip_version(model, provider.as_deref());
                Self {
                    provider,
                    combined: model.to_owned(),
                    region_free: model.to_owned(),
                    split,
                    combined_stripped: stripped.clone(),
                    stripped,
                    prefixed: model.to_owned(),
                }
            }
            Some(provider) => {
                let inner = model.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/'));
                let split = inner.unwrap_or(model).to_owned();
                let stripped = strip_version(&split, Some(provider));
                let prefixed = format!("{provider}/{model}");
                let combined = match inner {
                    Some(_) => model.to_owned(),
                    None => prefixed.clone(),
                };
                Self {
                    provider: Some(provider.to_owned()),
                    region_free: combined.clone(),
                    combined,
                    split,
                    combined_stripped: format!("{provider}/{stripped}"),
                    stripped,
                    prefixed,
                }
            }
        };
        match names.provider.as_deref() {
            Some("bedrock" | "bedrock_converse") => {
                names.split = bedrock::id_of(&names.split).to_owned();
            }
            Some(mantle @ "bedrock_mantle") => {
                let split = bedrock::split_mantle_region(&names.split).1.to_owned();
                names.region_free = format!("{mantle}/{split}");
                names.combined_stripped = format!("{mantle}/{}", strip_version(&split, Some(mantle)));
                names.split = split;
            }
            Some("fireworks_ai") => {
                names.prefixed = format!("fireworks_ai/{}", size_class::fireworks_resource(&names.split));
            }
            _ => {}
        }
        names
    }

    fn in_order<'a>(&'a self, model: &'a str) -> [&'a str; 7] {
        [&self.combined, model, &self.region_free, &self.split, &self.combined_stripped, &self.stripped, &self.prefixed]
    }
}

/// Whether an entry of the provider `listed` may price a request to the provider `asked`. An entry without a provider
/// matches every request, and some providers serve the models of others.
fn fits(listed: &str, asked: Option<&str>) -> bool {
    let Some(asked) = asked else { return true };
    listed.is_empty()
        || listed == asked
        || match asked {
            "vertex_ai" => listed.starts_with("vertex_ai"),
            "fireworks_ai" => listed.starts_with("fireworks_ai"),
            "azure_ai" => matches!(listed, "azure" | "openai"),
            "litellm_proxy" | "github" | "nadir" => true,
            _ => asked.starts_with("bedrock") && listed.starts_with("bedrock"),
        }
}

fn strip_version(model: &str, provider: Option<&str>) -> String {
    match provider {
        Some("bedrock" | "bedrock_converse") => bedrock::base_model(model),
        Some("vertex_ai" | "gemini" | "databricks") => strip_number(model).to_owned(),
        // Its models are operations, which have no dates.
        Some("scaledown") => model.to_owned(),
        _ if model.contains("ft:") => strip_fine_tuning(model).to_owned(),
        _ => strip_date(model).to_owned(),
    }
}

/// `gemini-1.5-flash-001` becomes `gemini-1.5-flash`.
fn strip_number(model: &str) -> &str {
    match model.rsplit_once('-') {
        Some((rest, number)) if is_number(number) => rest,
        _ => model,
    }
}

/// `o3-2025-04-16` becomes `o3`.
pub(crate) fn strip_date(model: &str) -> &str {
    let Some(split) = model.len().checked_sub("-2025-04-16".len()) else {
        return model;
    };
    match model.split_at_checked(split) {
        Some((rest, date)) if is_dash_date(date) => rest,
        _ => model,
    }
}

fn is_dash_date(text: &str) -> bool {
    let mut parts = text.split('-');
    parts.next() == Some("")
        && [4, 2, 2].iter().all(|length| parts.next().is_some_and(|part| part.len() == *length && is_number(part)))
        && parts.next().is_none()
}

/// `ft:gpt-4o:organization:suffix:id` becomes `ft:gpt-4o`.
fn strip_fine_tuning(model: &str) -> &str {
    let mut rest = model;
    for _ in 0..3 {
        match rest.rsplit_once(':') {
            Some((shorter, _)) => rest = shorter,
            None => return model,
        }
    }
    rest
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn vertex_listed_name(table: &PriceTable, model: &str) -> Option<String> {
    let is_listed = |name: &str, provider: &str| {
        table.provider_of(&format!("vertex_ai/{name}")) == provider || table.provider_of(name) == provider
    };
    let meta = format!("meta/{model}");
    if is_listed(&meta, "vertex_ai-llama_models") {
        return Some(meta);
    }
    let latest = format!("{model}@latest");
    (is_listed(&latest, "vertex_ai-mistral_models") || is_listed(&latest, "vertex_ai-ai21_models")).then_some(latest)
}

/// An entry without a token price, for a model that runs on the caller's own machine or that its provider bills by
/// other means.
pub(crate) fn free_entry(model: &str, provider: &str) -> ModelPrices {
    ModelPrices {
        name: model.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/')).unwrap_or(model).to_owned(),
        provider: provider.to_owned(),
        mode: Some("chat".to_owned()),
        ..ModelPrices::default()
    }
}
