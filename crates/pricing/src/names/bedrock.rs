//! Parses Bedrock model names. The model's own id can be surrounded by routing prefixes, regions, cross-region
//! profiles, ARNs and throughput suffixes.

const ROUTING_PREFIXES: [&str; 8] =
    ["bedrock/", "chat_completions/", "converse/", "invoke/", "openai/", "mantle/", "nova-2/", "nova/"];

const CROSS_REGION_PROFILES: [&str; 7] = ["global", "us", "eu", "apac", "jp", "au", "us-gov"];

const REGIONS: [&str; 23] = [
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
    "us-gov-east-1",
    "us-gov-west-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "eu-central-1",
    "eu-central-2",
    "eu-south-1",
    "eu-south-2",
    "eu-north-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ca-central-1",
    "sa-east-1",
];

/// Removes each routing prefix at most once, in the order of the list.
pub(crate) fn strip_routing(model: &str) -> &str {
    ROUTING_PREFIXES.iter().fold(model, |model, prefix| model.strip_prefix(prefix).unwrap_or(model))
}

/// Splits `REGION/ID`, the form of names at Bedrock's OpenAI-compatible endpoint ("mantle").
pub(crate) fn split_mantle_region(model: &str) -> (Option<&str>, &str) {
    match model.split_once('/') {
        Some((region, id)) if REGIONS.contains(&region) => (Some(region), id),
        _ => (None, model),
    }
}

/// The model id to look up when the whole name is not listed: the name without routing prefixes, or the last part of an
/// ARN.
pub(crate) fn id_of(model: &str) -> &str {
    let stripped = strip_routing(model);
    let region_free = split_mantle_region(stripped).1;
    if region_free.starts_with("arn:") { last_segment(region_free) } else { stripped }
}

/// The base model: the id without region, cross-region profile, throughput suffix and context-window suffix.
pub(crate) fn base_model(model: &str) -> String {
    let unprefixed = ["bedrock/converse/", "bedrock/", "converse/"]
        .iter()
        .find_map(|prefix| model.strip_prefix(prefix))
        .unwrap_or(model);
    if unprefixed.starts_with("nova-2/") {
        return "amazon.nova-2-custom".to_owned();
    }
    if unprefixed.starts_with("nova/") {
        return "amazon.nova-custom".to_owned();
    }
    let id = strip_routing(model);
    let id = if id.to_lowercase().contains("arn") { last_segment(id) } else { id };
    let id = strip_window(strip_throughput(id));
    if let Some((profile, rest)) = id.split_once('.')
        && CROSS_REGION_PROFILES.contains(&profile)
    {
        return rest.to_owned();
    }
    split_mantle_region(id).1.to_owned()
}

fn last_segment(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// `model:0:51k` means `model:0` at a committed throughput.
fn strip_throughput(model: &str) -> &str {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match model.rsplit_once(':') {
        Some((rest, size))
            if size.strip_suffix('k').is_some_and(is_number)
                && rest.rsplit_once(':').is_some_and(|(_, version)| is_number(version)) =>
        {
            rest
        }
        _ => model,
    }
}

/// `model[1m]` means `model` with a larger context window.
fn strip_window(model: &str) -> &str {
    match model.strip_suffix(']').and_then(|open| open.rsplit_once('[')) {
        Some((rest, size)) if !size.is_empty() && size.chars().all(|c| c.is_alphanumeric() || c == '_') => rest,
        _ => model,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_model_stands_alone() {
        for (name, base) in [
            ("us.meta.llama3-2-11b-instruct-v1:0", "meta.llama3-2-11b-instruct-v1:0"),
            ("bedrock/converse/anthropic.claude-v2", "anthropic.claude-v2"),
            ("us-west-2/anthropic.claude-v2", "anthropic.claude-v2"),
            ("anthropic.claude-v2:1:18k", "anthropic.claude-v2:1"),
            ("us.anthropic.claude-opus-4-6-v1[1m]", "anthropic.claude-opus-4-6-v1"),
            ("arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
            ("nova/arn:aws:bedrock:x", "amazon.nova-custom"),
        ] {
            assert_eq!(base_model(name), base);
        }
    }
}
