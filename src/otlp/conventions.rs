//! The names that instrumentations use: OpenTelemetry's semantic conventions for generative AI, their earlier versions,
//! and further spellings of instrumentations that are in use.
//!
//! The conventions have no releases of their own since they left `semantic-conventions`. This module follows their
//! registry as of commit `002c8a6`:
//! <https://github.com/open-telemetry/semantic-conventions-genai/blob/002c8a6ea1c8a42b14a4527db83b3cabcded610a/model/gen-ai/registry.yaml>.
//!
//! Each list is in the order of precedence: the first attribute that a span has counts.

/// The attribute that says what a span describes.
pub const OPERATION: &str = "gen_ai.operation.name";

/// The model that answered.
pub const RESPONSE_MODEL: &str = "gen_ai.response.model";

/// The model that was asked.
pub const REQUEST_MODEL: &str = "gen_ai.request.model";

/// The provider. `gen_ai.system` is its earlier name.
pub const PROVIDER: &[&str] = &["gen_ai.provider.name", "gen_ai.system"];

/// All tokens of the prompt. `prompt_tokens` is the earlier name.
pub const INPUT_TOKENS: &[&str] = &["gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"];

/// All tokens of the answer. `completion_tokens` is the earlier name.
pub const OUTPUT_TOKENS: &[&str] = &["gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"];

/// Tokens that were read from the provider's cache: the conventions', and the spellings of OpenLLMetry, Pydantic AI and
/// Sentry.
pub const CACHE_READ_TOKENS: &[&str] = &[
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.details.cache_read_tokens",
    "gen_ai.usage.details.cache_read_input_tokens",
    "gen_ai.usage.details.cached_tokens",
    "gen_ai.usage.input_tokens.cached",
];

/// Tokens that were written to the provider's cache: the names of OpenTelemetry's own library for instrumentations, of
/// the conventions, of OpenLLMetry, Pydantic AI and Sentry.
pub const CACHE_CREATION_TOKENS: &[&str] = &[
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "gen_ai.usage.details.cache_write_tokens",
    "gen_ai.usage.details.cache_creation_input_tokens",
    "gen_ai.usage.input_tokens.cache_write",
];

/// Tokens of the answer that were used for reasoning.
pub const REASONING_TOKENS: &[&str] = &[
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "gen_ai.usage.details.reasoning_tokens",
    "gen_ai.usage.output_tokens.reasoning",
];

/// Tokens of the prompt that are audio. Providers bill them at a price of their own.
pub const INPUT_AUDIO_TOKENS: &[&str] = &["gen_ai.usage.audio.input_tokens", "gen_ai.usage.details.input_audio_tokens"];

/// Tokens of the prompt that are images.
pub const INPUT_IMAGE_TOKENS: &[&str] = &["gen_ai.usage.image.input_tokens"];

/// Audio tokens of the prompt that were read from the cache.
pub const CACHE_READ_AUDIO_TOKENS: &[&str] =
    &["gen_ai.usage.audio.cache_read.input_tokens", "gen_ai.usage.details.cache_audio_read_tokens"];

/// Tokens of the answer that are audio.
pub const OUTPUT_AUDIO_TOKENS: &[&str] =
    &["gen_ai.usage.audio.output_tokens", "gen_ai.usage.details.output_audio_tokens"];

/// The service tier in which OpenAI served the call. Tiers have prices of their own. The second name is the earlier one.
pub const SERVICE_TIER: &[&str] = &["openai.response.service_tier", "gen_ai.openai.response.service_tier"];

/// The class of the error with which the call ended.
pub const ERROR_TYPE: &str = "error.type";

/// The conversation that the call belongs to.
pub const CONVERSATION: &str = "gen_ai.conversation.id";

/// The provider's id of the answer.
pub const RESPONSE_ID: &str = "gen_ai.response.id";

/// All lists of names whose values are read.
const LISTS: [&[&str]; 12] = [
    &[OPERATION, RESPONSE_MODEL, REQUEST_MODEL, ERROR_TYPE, CONVERSATION, RESPONSE_ID],
    PROVIDER,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    CACHE_READ_TOKENS,
    CACHE_CREATION_TOKENS,
    REASONING_TOKENS,
    INPUT_AUDIO_TOKENS,
    INPUT_IMAGE_TOKENS,
    CACHE_READ_AUDIO_TOKENS,
    OUTPUT_AUDIO_TOKENS,
    SERVICE_TIER,
];

/// Whether the mapping reads the attribute with this name.
pub fn is_read(name: &str) -> bool {
    LISTS.iter().any(|names| names.contains(&name))
}

/// The kinds of spans that describe one inference each. All other spans are ignored. Agents, workflows and tools wrap
/// inferences, and repeat the sum of their tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A chat completion, or another API with messages.
    Chat,
    /// A completion of a text.
    TextCompletion,
    /// Google's multimodal generation.
    GenerateContent,
    /// Embeddings.
    Embeddings,
}

impl Operation {
    /// The operation with this name, if it is an inference.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "chat" => Some(Self::Chat),
            "text_completion" => Some(Self::TextCompletion),
            "generate_content" => Some(Self::GenerateContent),
            "embeddings" => Some(Self::Embeddings),
            _ => None,
        }
    }

    /// The name in the conventions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::GenerateContent => "generate_content",
            Self::Embeddings => "embeddings",
        }
    }

    /// LiteLLM's name for this kind of call.
    pub fn call_type(self) -> &'static str {
        match self {
            Self::Chat => "acompletion",
            Self::TextCompletion => "atext_completion",
            Self::GenerateContent => "agenerate_content",
            Self::Embeddings => "aembedding",
        }
    }
}

/// LiteLLM's name of a provider. The names on the left are those of `gen_ai.provider.name`, of `gen_ai.system`, and of
/// OpenLLMetry, in lower case. Other names, such as `groq`, are the same in LiteLLM, or unknown to it.
pub fn litellm_provider(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase();
    let known = match name.as_str() {
        "aws.bedrock" | "aws_bedrock" | "aws" => "bedrock",
        "azure.ai.openai" | "az.ai.openai" | "azure_openai" => "azure",
        "azure.ai.inference" | "az.ai.inference" => "azure_ai",
        // The endpoint is unknown. Google's two endpoints have the same prices for most models.
        "gcp.gen_ai" | "gcp.gemini" | "google" | "google_genai" => "gemini",
        "gcp.vertex_ai" | "vertexai" => "vertex_ai",
        "ibm.watsonx.ai" | "ibm.watsonx" => "watsonx",
        "mistral_ai" | "mistralai" | "mistral ai" => "mistral",
        "moonshot_ai" => "moonshot",
        "x_ai" => "xai",
        "togetherai" => "together_ai",
        other => other,
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conventions_providers_get_litellms_names() {
        for (name, expected) in [
            ("openai", "openai"),
            ("anthropic", "anthropic"),
            ("aws.bedrock", "bedrock"),
            ("azure.ai.openai", "azure"),
            ("az.ai.openai", "azure"),
            ("azure.ai.inference", "azure_ai"),
            ("gcp.vertex_ai", "vertex_ai"),
            ("vertex_ai", "vertex_ai"),
            ("gcp.gemini", "gemini"),
            ("gcp.gen_ai", "gemini"),
            ("cohere", "cohere"),
            ("mistral_ai", "mistral"),
            ("x_ai", "xai"),
            ("xai", "xai"),
            ("deepseek", "deepseek"),
            ("groq", "groq"),
            ("perplexity", "perplexity"),
            ("ibm.watsonx.ai", "watsonx"),
            ("moonshot_ai", "moonshot"),
            ("OpenAI", "openai"),
            (" Mistral AI ", "mistral"),
            ("something_else", "something_else"),
        ] {
            assert_eq!(litellm_provider(name), expected, "{name}");
        }
    }

    #[test]
    fn agents_and_tools_are_no_inferences() {
        for name in ["invoke_agent", "create_agent", "execute_tool", "invoke_workflow", "retrieval", "plan", "", "Chat"]
        {
            assert_eq!(Operation::named(name), None, "{name}");
        }
        for operation in [Operation::Chat, Operation::TextCompletion, Operation::GenerateContent, Operation::Embeddings]
        {
            assert_eq!(Operation::named(operation.name()), Some(operation));
        }
    }
}
