//! Tests rules that the recordings don't cover: breakdowns, custom models, refusals, usage objects of other APIs.

#![expect(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::sync::Arc;

use chrono::{DateTime, Utc};
use litespend_pricing::{
    CalculateRequest, Calculation, ComponentKind, CustomModels, Encoding, PriceTable, Pricer, PricingError, Usage,
};
use rust_decimal::Decimal;
use serde_json::{Value, json};

fn now() -> DateTime<Utc> {
    "2026-09-22T08:30:00Z".parse().unwrap()
}

fn pricer(config: &Value) -> Pricer {
    let custom = CustomModels::from_config(config.get("model_list"), config.get("router_settings"));
    Pricer::new(Arc::new(PriceTable::embedded().unwrap()), custom)
}

fn calculate(pricer: &Pricer, body: &Value) -> Result<Calculation, PricingError> {
    let body = body.as_object().unwrap().clone();
    pricer.calculate(&CalculateRequest::from_body(body).unwrap(), now())
}

fn response(model: &str, usage: &Value) -> Value {
    json!({"completion_response": {"model": model, "usage": usage}})
}

fn decimal(text: &str) -> Decimal {
    text.parse().unwrap()
}

#[test]
fn a_breakdown_names_the_entry_and_every_line() {
    let usage = json!({"prompt_tokens": 2006, "completion_tokens": 300,
        "prompt_tokens_details": {"cached_tokens": 1920}});
    let priced = calculate(&pricer(&json!({})), &response("openai/gpt-4o", &usage)).unwrap();
    assert_eq!(priced.model, "gpt-4o");
    assert_eq!(priced.provider, "openai");
    assert_eq!(priced.price_entry.as_deref(), Some("gpt-4o"));
    assert!(!priced.retired);
    let lines: Vec<_> =
        priced.components.iter().map(|line| (line.kind, line.quantity, line.unit_price, line.cost)).collect();
    assert_eq!(
        lines,
        [
            (ComponentKind::InputTokens, decimal("86"), decimal("0.0000025"), decimal("0.000215")),
            (ComponentKind::CacheReadTokens, decimal("1920"), decimal("0.00000125"), decimal("0.0024")),
            (ComponentKind::OutputTokens, decimal("300"), decimal("0.00001"), decimal("0.003")),
        ]
    );
    assert_eq!(priced.cost, decimal("0.005615"));
    assert_eq!(priced.cost_f64(), 0.005615);
}

#[test]
fn retired_models_say_so() {
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 5});
    let priced = calculate(&pricer(&json!({})), &response("gpt-3.5-turbo-0301", &usage)).unwrap();
    assert!(priced.retired);
    assert_eq!(priced.last_version, None);
    let priced = calculate(&pricer(&json!({})), &response("azure/gpt-4-32k", &usage)).unwrap();
    assert!(priced.retired);
    assert_eq!(priced.last_version.as_deref(), Some("1.109.1"));
}

#[test]
fn an_alias_is_priced_as_the_model_that_it_stands_for() {
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 5});
    let pricer = pricer(&json!({}));
    for (alias, model) in [
        ("claude-opus-latest", "claude-opus-5-5"),
        ("azure_ai/kimi-latest", "FW-Kimi-K3"),
        ("bedrock/claude-opus-latest", "global.anthropic.claude-opus-5-5"),
    ] {
        let priced = calculate(&pricer, &response(alias, &usage)).unwrap();
        assert_eq!(priced.model, model);
        assert!(priced.price_entry.unwrap().ends_with(model));
    }
}

/// The cost of a response by a table with this entry only.
fn cost_with(name: &str, entry: &Value, usage: &Value) -> Decimal {
    let table = PriceTable::from_json(json!({name: entry}).to_string().as_bytes()).unwrap();
    let pricer = Pricer::new(Arc::new(table), CustomModels::default());
    calculate(&pricer, &response(name, usage)).unwrap().cost
}

#[test]
fn audio_has_prices_above_sizes_and_images_in_a_cache_have_their_own() {
    let entry = json!({"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1, "output_cost_per_token": 0,
        "input_cost_per_audio_token": 2, "input_cost_per_audio_token_above_200k_tokens": 3,
        "cache_read_input_token_cost": 10, "cache_read_input_image_token_cost": 20});
    let usage = |prompt: u64| {
        json!({"prompt_tokens": prompt, "completion_tokens": 0, "prompt_tokens_details":
        {"audio_tokens": 4, "cached_tokens": 6, "cached_tokens_details": {"image_tokens": 5}}})
    };
    let cost = |prompt: u64| cost_with("openai/m", &entry, &usage(prompt));
    assert_eq!(cost(200_000), Decimal::from(200_000 - 10 + 4 * 2 + 10 + 5 * 20));
    assert_eq!(cost(200_001), Decimal::from(200_001 - 10 + 4 * 3 + 10 + 5 * 20));
}

#[test]
fn searches_that_a_usage_counts_are_billed_one_by_one() {
    let entry = json!({"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1, "output_cost_per_token": 0,
        "search_context_cost_per_query": {"search_context_size_medium": 100}});
    let usage = |searches: u64| {
        json!({"prompt_tokens": 1, "completion_tokens": 0,
        "server_tool_use": {"web_search_requests": searches}})
    };
    assert_eq!(cost_with("openai/m", &entry, &usage(3)), Decimal::from(301));
    assert_eq!(cost_with("openai/m", &entry, &usage(0)), Decimal::from(101));
}

#[test]
fn parts_of_tools_that_anthropic_runs_are_counted() {
    let pricer = pricer(&json!({}));
    let count = |content: Value| pricer.count_tokens("gpt-4o", &[json!({"role": "user", "content": [content]})]);
    let words = json!({"type": "text", "text": "naïve words"});
    let document =
        json!({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "naïve words"}});
    let result = |content: &Value| json!({"type": "web_fetch_tool_result", "tool_use_id": "1", "content": content});
    let plain = count(words.clone()).unwrap();
    assert_eq!(count(result(&json!([words]))), Ok(plain));
    assert_eq!(count(result(&json!({"type": "web_fetch_result", "content": document}))), Ok(plain));
    assert!(count(result(&words)).is_err());
}

#[test]
fn prices_of_deployments_go_before_the_table() {
    let pricer = pricer(&json!({
        "model_list": [
            {"model_name": "own", "litellm_params": {"model": "openai/my-llama",
                "input_cost_per_token": 1e-6, "output_cost_per_token": "2e-6"}},
            {"model_name": "by-info", "litellm_params": {"model": "openai/my-llama"},
                "model_info": {"input_cost_per_token": 3e-6, "output_cost_per_token": 0}},
            {"model_name": "based", "litellm_params": {"model": "azure/deployment-7"},
                "model_info": {"base_model": "azure/gpt-4o"}},
            {"model_name": "plain", "litellm_params": {"model": "openai/gpt-4o-mini"}},
            {"model_name": "half", "litellm_params": {"model": "openai/gpt-4o",
                "input_cost_per_token": 0}},
        ],
        "router_settings": {"model_group_alias": {
            "short": "own", "hidden": {"model": "plain", "hidden": true}, "direct": "gpt-4o",
        }},
    }));
    let usage = json!({"prompt_tokens": 1000, "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 500}});
    for (model, cost) in [
        ("own", "0.0012"),
        ("short", "0.0012"),
        ("by-info", "0.003"),
        ("based", "0.002875"),
        ("plain", "0.0001725"),
        ("hidden", "0.0001725"),
        ("direct", "0.002875"),
        ("half", "0.001"),
    ] {
        let priced = calculate(&pricer, &response(model, &usage)).unwrap();
        assert_eq!(priced.cost, decimal(cost), "{model}");
    }
    let messages = json!([{"role": "user", "content": "Hey, how's it going?"}]);
    let body = json!({"model": "short", "messages": messages});
    assert_eq!(calculate(&pricer, &body).unwrap().cost, decimal("0.000014"));
    let body = json!({"model": "unknown", "messages": messages});
    assert!(matches!(calculate(&pricer, &body), Err(PricingError::UnknownProvider { .. })));
}

#[test]
fn absurd_counts_are_refused() {
    let pricer = pricer(&json!({}));
    for count in [json!(-1), json!(1e30), json!(10u64.pow(18)), json!(1.5), json!("x"), json!([1])] {
        let usage = json!({"prompt_tokens": count, "completion_tokens": 1});
        let answer = calculate(&pricer, &response("gpt-4o", &usage));
        assert!(matches!(answer, Err(PricingError::InvalidUsage { .. })), "{count}");
    }
    let usage = json!({"prompt_tokens": 1_000_000_000_000u64, "completion_tokens": 1});
    assert!(calculate(&pricer, &response("gpt-4o", &usage)).is_ok());
}

#[test]
fn unknown_models_have_no_price() {
    let pricer = pricer(&json!({}));
    let usage = json!({"prompt_tokens": 1, "completion_tokens": 1});
    for model in ["", "nothing", "openai/nothing", "azure/my-deployment", "claude-novel-9"] {
        assert!(calculate(&pricer, &response(model, &usage)).is_err(), "{model}");
    }
}

#[test]
fn usage_of_every_api_is_booked() {
    let pricer = pricer(&json!({}));
    let cost = |model: &str, usage: Value| {
        let usage = Usage::from_any(usage.as_object().unwrap()).unwrap();
        pricer.price_usage(model, None, &usage, now()).unwrap().cost
    };
    let chat = json!({"prompt_tokens": 1000, "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 400}});
    let responses = json!({"input_tokens": 1000, "output_tokens": 100,
        "input_tokens_details": {"cached_tokens": 400}});
    let anthropic = json!({"input_tokens": 600, "output_tokens": 100,
        "cache_read_input_tokens": 400, "cache_creation_input_tokens": 0});
    let expected = cost("claude-sonnet-4-20250514", chat);
    assert_eq!(expected, decimal("0.00342"));
    assert_eq!(cost("claude-sonnet-4-20250514", responses), expected);
    assert_eq!(cost("claude-sonnet-4-20250514", anthropic), expected);
}

/// The long text is 16 times as long as the short one. Linear counting takes 16 times as long, quadratic counting 256
/// times. The limit of 64 times lies between them.
#[test]
fn hostile_texts_take_time_in_proportion_to_their_length() {
    for unit in ["a", " ", "🚀", "<"] {
        let (short, long) = (unit.repeat(10_000 / unit.len()), unit.repeat(160_000 / unit.len()));
        for encoding in [Encoding::Cl100k, Encoding::O200k, Encoding::Anthropic, Encoding::DeepSeek] {
            let seconds = |text: &str| {
                let started = std::time::Instant::now();
                assert!(encoding.count(text) > 0);
                started.elapsed().as_secs_f64()
            };
            // The first count also unpacks the vocabulary.
            seconds("a");
            // The best of three runs, because other tests run at the same time.
            let best = |text: &str| (0..3).map(|_| seconds(text)).fold(f64::INFINITY, f64::min);
            let (short, long) = (best(&short), best(&long));
            println!("{encoding:?} {unit:?}: {short:.3} s and {long:.3} s");
            assert!(long < 64.0 * short + 0.1, "{encoding:?} {unit:?}: {short} s and {long} s");
        }
    }
}

#[test]
fn deeply_nested_content_is_refused() {
    let mut part = json!({"type": "text", "text": "x"});
    for _ in 0..100 {
        part = json!({"type": "tool_result", "tool_use_id": "t", "content": [part]});
    }
    let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": [part]}]});
    let answer = calculate(&pricer(&json!({})), &body);
    assert!(matches!(answer, Err(PricingError::InvalidMessages { .. })));
}
