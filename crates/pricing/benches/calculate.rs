//! Benchmarks pricing a parsed usage, pricing a response, and counting tokens.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use litespend_pricing::{CalculateRequest, CustomModels, Encoding, PriceTable, Pricer, Usage};
use serde_json::json;

fn pricing(c: &mut Criterion) {
    let table = Arc::new(PriceTable::embedded().unwrap());
    let pricer = Pricer::new(table, CustomModels::default());
    let now = "2026-09-22T08:30:00Z".parse().unwrap();
    let usage = json!({
        "prompt_tokens": 3000,
        "completion_tokens": 300,
        "total_tokens": 3300,
        "prompt_tokens_details": {"cached_tokens": 500},
        "completion_tokens_details": {"reasoning_tokens": 100},
    });
    let parsed = Usage::from_any(usage.as_object().unwrap()).unwrap();
    for model in ["gpt-4o", "anthropic/claude-sonnet-4-5", "deepseek/deepseek-v4-pro"] {
        c.bench_function(&format!("price a parsed usage/{model}"), |b| {
            b.iter(|| pricer.price_usage(black_box(model), None, black_box(&parsed), now));
        });
    }
    let response = json!({"completion_response": {
        "id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o", "usage": usage,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there"}}],
    }});
    let request = CalculateRequest::from_body(response.as_object().unwrap().clone()).unwrap();
    c.bench_function("calculate a response", |b| {
        b.iter(|| pricer.calculate(black_box(&request), now));
    });
    c.bench_function("read the embedded table", |b| {
        b.iter(|| PriceTable::embedded().unwrap());
    });
}

fn counting(c: &mut Criterion) {
    let text = include_str!("../src/names/provider.rs").repeat(4)
        + &"The quick brown fox jumps over the lazy dog. 日本語のテキスト, naïve! 🚀\n".repeat(2000);
    let mut group = c.benchmark_group("count tokens");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for encoding in [Encoding::Cl100k, Encoding::O200k, Encoding::Anthropic, Encoding::DeepSeek] {
        group.bench_function(format!("{encoding:?}"), |b| {
            b.iter(|| encoding.count(black_box(&text)));
        });
    }
    group.finish();
}

criterion_group!(benches, pricing, counting);
criterion_main!(benches);
