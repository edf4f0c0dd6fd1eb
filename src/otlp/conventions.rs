//! The names that instrumentations use: OpenTelemetry's semantic conventions for generative AI, their earlier versions,
//! those of OpenLLMetry and OpenInference, and further spellings of instrumentations that are in use.
//!
//! The conventions have no releases of their own since they left `semantic-conventions`. This module follows their
//! registry as of commit `002c8a6`:
//! <https://github.com/open-telemetry/semantic-conventions-genai/blob/002c8a6ea1c8a42b14a4527db83b3cabcded610a/model/gen-ai/registry.yaml>.
//! The names that begin with `llm.`, `embedding.` and `openinference.` are those of OpenInference as of commit `1fe497f`:
//! <https://github.com/Arize-ai/openinference/blob/1fe497f1d9f45a07eee55d97fe185e020560f9c7/spec/semantic_conventions.md>.
//! `llm.request.type` is OpenLLMetry's, until 0.5 of its package `opentelemetry-semantic-conventions-ai`, which uses the
//! conventions' name: <https://github.com/traceloop/openllmetry/blob/93429cfb9767e6b51db6cb35f6b70f758117669a/packages/opentelemetry-semantic-conventions-ai/MIGRATION.md>.
//!
//! Each list is in the order of precedence: the first attribute that a span has counts.

/// The attribute that says what a span describes.
pub const OPERATION: &str = "gen_ai.operation.name";

/// OpenLLMetry's attribute that says what a span describes.
pub const REQUEST_TYPE: &str = "llm.request.type";

/// OpenInference's attribute that says what a span describes.
pub const SPAN_KIND: &str = "openinference.span.kind";

/// The model that answered. OpenInference's `llm.model_name` is the one that answered where that is known.
pub const RESPONSE_MODEL: &[&str] =
    &["gen_ai.response.model", "llm.response.model_name", "llm.model_name", "embedding.model_name"];

/// The model that was asked.
pub const REQUEST_MODEL: &[&str] = &["gen_ai.request.model", "llm.request.model_name"];

/// The provider. `gen_ai.system` is its earlier name. OpenInference's `llm.provider` hosts the model, and `llm.system`
/// made it or its API.
pub const PROVIDER: &[&str] = &["gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system"];

/// All tokens of the prompt. `prompt_tokens` is the earlier name.
pub const INPUT_TOKENS: &[&str] =
    &["gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"];

/// All tokens of the answer. `completion_tokens` is the earlier name.
pub const OUTPUT_TOKENS: &[&str] =
    &["gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"];

/// Tokens that were read from the provider's cache: the conventions', and the spellings of OpenLLMetry, Pydantic AI,
/// Sentry and OpenInference.
pub const CACHE_READ_TOKENS: &[&str] = &[
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.details.cache_read_tokens",
    "gen_ai.usage.details.cache_read_input_tokens",
    "gen_ai.usage.details.cached_tokens",
    "gen_ai.usage.input_tokens.cached",
    "llm.token_count.prompt_details.cache_read",
];

/// Tokens that were written to the provider's cache: the names of OpenTelemetry's own library for instrumentations, of
/// the conventions, of OpenLLMetry, Pydantic AI, Sentry and OpenInference.
pub const CACHE_CREATION_TOKENS: &[&str] = &[
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "gen_ai.usage.details.cache_write_tokens",
    "gen_ai.usage.details.cache_creation_input_tokens",
    "gen_ai.usage.input_tokens.cache_write",
    "llm.token_count.prompt_details.cache_write",
];

/// Tokens of the answer that were used for reasoning.
pub const REASONING_TOKENS: &[&str] = &[
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "gen_ai.usage.details.reasoning_tokens",
    "gen_ai.usage.output_tokens.reasoning",
    "llm.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
];

/// Tokens of the prompt that are audio. Providers bill them at a price of their own.
pub const INPUT_AUDIO_TOKENS: &[&str] = &[
    "gen_ai.usage.audio.input_tokens",
    "gen_ai.usage.details.input_audio_tokens",
    "llm.token_count.prompt_details.audio",
];

/// Tokens of the prompt that are images.
pub const INPUT_IMAGE_TOKENS: &[&str] = &["gen_ai.usage.image.input_tokens"];

/// Audio tokens of the prompt that were read from the cache.
pub const CACHE_READ_AUDIO_TOKENS: &[&str] =
    &["gen_ai.usage.audio.cache_read.input_tokens", "gen_ai.usage.details.cache_audio_read_tokens"];

/// Tokens of the answer that are audio.
pub const OUTPUT_AUDIO_TOKENS: &[&str] = &[
    "gen_ai.usage.audio.output_tokens",
    "gen_ai.usage.details.output_audio_tokens",
    "llm.token_count.completion_details.audio",
];

/// The service tier in which OpenAI served the call. Tiers have prices of their own. The second name is the earlier one.
pub const SERVICE_TIER: &[&str] = &["openai.response.service_tier", "gen_ai.openai.response.service_tier"];

/// The class of the error with which the call ended.
pub const ERROR_TYPE: &str = "error.type";

/// The conversation that the call belongs to.
pub const CONVERSATION: &str = "gen_ai.conversation.id";

/// The provider's id of the answer.
pub const RESPONSE_ID: &str = "gen_ai.response.id";

/// All lists of names whose values are read.
const LISTS: [&[&str]; 14] = [
    &[OPERATION, REQUEST_TYPE, SPAN_KIND, ERROR_TYPE, CONVERSATION, RESPONSE_ID],
    RESPONSE_MODEL,
    REQUEST_MODEL,
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
    /// The operation with this name, if it is an inference. Semantic Kernel has names of its own.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "chat" | "chat.completions" | "chat.streaming_completions" => Some(Self::Chat),
            "text_completion" | "text.completions" | "text.streaming_completions" => Some(Self::TextCompletion),
            "generate_content" => Some(Self::GenerateContent),
            "embeddings" => Some(Self::Embeddings),
            _ => None,
        }
    }

    /// Whether an operation with this name is something else: work of agents and tools around inferences.
    pub fn is_around(name: &str) -> bool {
        matches!(name, "create_agent" | "execute_tool" | "invoke_agent" | "invoke_workflow" | "plan" | "retrieval")
    }

    /// The operation of one of OpenLLMetry's request types, if it is an inference.
    pub fn of_request_type(request_type: &str) -> Option<Self> {
        match request_type {
            "chat" => Some(Self::Chat),
            "completion" => Some(Self::TextCompletion),
            "embedding" => Some(Self::Embeddings),
            _ => None,
        }
    }

    /// The operation of one of OpenInference's kinds of spans, if it is an inference.
    pub fn of_span_kind(kind: &str) -> Option<Self> {
        match kind {
            "LLM" => Some(Self::Chat),
            "EMBEDDING" => Some(Self::Embeddings),
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

/// LiteLLM's name of a provider. The names on the left are those of `gen_ai.provider.name`, of `gen_ai.system`, of
/// OpenLLMetry, and of OpenInference, in lower case. Other names, such as `groq`, are the same in LiteLLM, or unknown to
/// it.
pub fn litellm_provider(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase();
    let known = match name.as_str() {
        "aws.bedrock" | "aws_bedrock" | "aws" | "amazon" => "bedrock",
        "azure.ai.openai" | "az.ai.openai" | "azure_openai" => "azure",
        "azure.ai.inference" | "az.ai.inference" => "azure_ai",
        "gcp.gemini" => "gemini",
        _ if is_google(&name) => "gemini",
        "gcp.vertex_ai" | "vertexai" => "vertex_ai",
        "ibm.watsonx.ai" | "ibm.watsonx" => "watsonx",
        "mistral_ai" | "mistralai" | "mistral ai" => "mistral",
        "moonshot_ai" => "moonshot",
        "x_ai" => "xai",
        "togetherai" | "together" => "together_ai",
        "fireworks" => "fireworks_ai",
        "hugging_face" => "huggingface",
        "alephalpha" => "aleph_alpha",
        other => other,
    };
    known.to_owned()
}

/// Whether a name in lower case is Google without saying which of its two endpoints. Both have the same prices for most
/// models.
fn is_google(name: &str) -> bool {
    matches!(name, "gcp.gen_ai" | "google" | "google_genai")
}

/// The names under which LiteLLM lists the models of a provider for an operation, the likelier one first. LiteLLM splits
/// some providers by API.
pub fn litellm_providers(name: &str, operation: Operation) -> Vec<String> {
    let provider = litellm_provider(name);
    let second = match (provider.as_str(), operation) {
        ("cohere" | "openai" | "azure", Operation::Embeddings) => None,
        ("cohere", _) => Some("cohere_chat"),
        ("openai", _) => Some("text-completion-openai"),
        ("azure", _) => Some("azure_text"),
        ("gemini", _) if is_google(&name.trim().to_ascii_lowercase()) => Some("vertex_ai"),
        _ => None,
    };
    let second_is_likelier = match provider.as_str() {
        "cohere" => operation != Operation::TextCompletion,
        "openai" | "azure" => operation == Operation::TextCompletion,
        _ => false,
    };
    let mut names: Vec<String> = std::iter::once(provider).chain(second.map(str::to_owned)).collect();
    if second_is_likelier {
        names.reverse();
    }
    names
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
            ("together", "together_ai"),
            ("HuggingFace", "huggingface"),
        ] {
            assert_eq!(litellm_provider(name), expected, "{name}");
        }
    }

    #[test]
    fn the_operation_decides_between_the_apis_of_one_provider() {
        use Operation::{Chat, Embeddings, TextCompletion};
        for (name, operation, expected) in [
            ("cohere", Chat, &["cohere_chat", "cohere"][..]),
            ("Cohere", TextCompletion, &["cohere", "cohere_chat"]),
            ("cohere", Embeddings, &["cohere"]),
            ("openai", Chat, &["openai", "text-completion-openai"]),
            ("openai", TextCompletion, &["text-completion-openai", "openai"]),
            ("openai", Embeddings, &["openai"]),
            ("azure.ai.openai", TextCompletion, &["azure_text", "azure"]),
            ("Google", Chat, &["gemini", "vertex_ai"]),
            ("gcp.gemini", Chat, &["gemini"]),
            ("gcp.vertex_ai", Chat, &["vertex_ai"]),
            ("groq", Chat, &["groq"]),
        ] {
            assert_eq!(litellm_providers(name, operation), expected, "{name} {operation:?}");
        }
    }

    #[test]
    fn other_conventions_name_their_inferences_too() {
        let of_type = |name| Operation::of_request_type(name);
        assert_eq!(
            ["chat", "completion", "embedding", "rerank", "unknown"].map(of_type),
            [Some(Operation::Chat), Some(Operation::TextCompletion), Some(Operation::Embeddings), None, None]
        );
        let of_kind = |name| Operation::of_span_kind(name);
        assert_eq!(
            ["LLM", "EMBEDDING", "CHAIN", "AGENT", "RERANKER"].map(of_kind),
            [Some(Operation::Chat), Some(Operation::Embeddings), None, None, None]
        );
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
