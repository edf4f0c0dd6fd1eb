"""A program whose calls OpenTelemetry exports: python calls.py ADDRESS MASTER_KEY LITESPEND LOG SERVICE

LOG is the file with the server's log.

OTEL_SEMCONV_STABILITY_OPT_IN decides whether the instrumentation uses the newest names of attributes."""

import datetime
import json
import os
import subprocess
import sys
import urllib.request

ADDRESS, MASTER_KEY, LITESPEND, LOG, SERVICE = sys.argv[1:]


def text_of(path, body=None):
    request = urllib.request.Request(
        ADDRESS + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {MASTER_KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def ask(path, body=None):
    return json.loads(text_of(path, body))


KEY = ask("/key/generate", {"key_alias": SERVICE})["key"]
# The configuration, as docs/opentelemetry.md gives it.
os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"{ADDRESS}/v1/traces"
os.environ["OTEL_EXPORTER_OTLP_TRACES_HEADERS"] = f"Authorization=Bearer%20{KEY}"
os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
os.environ["OTEL_SERVICE_NAME"] = SERVICE
os.environ["OTEL_RESOURCE_ATTRIBUTES"] = "deployment.environment.name=test"

import openai
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from provider import Provider


class NamesTheCustomer(SpanProcessor):
    """Says for whom a call is made, as a program does that knows its customers."""

    def on_start(self, span, parent_context=None):
        span.set_attribute("enduser.id", "customer-otlp")


def make_calls(tracer, provider):
    """Makes calls within the spans of an agent, which repeats the sum of their tokens."""
    client = openai.OpenAI(base_url=provider.url, api_key="sk-stub", max_retries=0)
    messages = [{"role": "user", "content": "What does a call cost?"}]
    with tracer.start_as_current_span("invoke_agent shop") as agent:
        agent.set_attribute("gen_ai.operation.name", "invoke_agent")
        agent.set_attribute("gen_ai.request.model", "gpt-4o")
        for _ in range(3):
            client.chat.completions.create(model="gpt-4o", messages=messages)
        with tracer.start_as_current_span("execute_tool search") as tool:
            tool.set_attribute("gen_ai.operation.name", "execute_tool")
            client.embeddings.create(model="text-embedding-3-small", input="shoes")
        pieces = client.chat.completions.create(
            model="gpt-4o-mini", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        assert [piece for piece in pieces]
        agent.set_attribute("gen_ai.usage.input_tokens", 1_000_000)
        agent.set_attribute("gen_ai.usage.output_tokens", 1_000_000)
    try:
        client.chat.completions.create(model="gpt-4o", messages=messages, user="limited")
        raise SystemExit("the call should have failed")
    except openai.RateLimitError:
        pass
    # Spans of instrumentations for other providers, as the conventions describe them.
    cached = {"gen_ai.usage.cache_read.input_tokens": 700}
    for name, attributes in [("gen_ai.provider.name", cached), ("gen_ai.system", {})]:
        with tracer.start_as_current_span("chat claude") as span:
            span.set_attributes({
                "gen_ai.operation.name": "chat",
                name: "anthropic",
                "gen_ai.request.model": "claude-sonnet-4-5-20250929",
                "gen_ai.usage.input_tokens": 1000,
                "gen_ai.usage.output_tokens": 100,
                **attributes,
            })


def cost(model, *counts):
    if not any(counts):
        return 0.0
    flags = [text for name, count in zip(("--input", "--output", "--cached"), counts) for text in (name, str(count))]
    said = subprocess.run([LITESPEND, "cost", model, *flags], check=True, capture_output=True, text=True).stdout
    return float(said.splitlines()[-1].removesuffix(" USD"))


def close(one, other):
    return abs(one - other) < 1e-9


def id_of(span):
    return f"otel-{span.context.trace_id:032x}-{span.context.span_id:016x}"


def rows_of(spans):
    inferences = [span for span in spans if span.attributes.get("gen_ai.operation.name") in ("chat", "embeddings")]
    found = [ask(f"/spend/logs?request_id={id_of(span)}") for span in inferences]
    assert all(len(rows) == 1 for rows in found), found
    return [rows[0] for rows in found]


def reported():
    """The sum of the report over all days that the calls can have."""
    today = datetime.datetime.now(datetime.timezone.utc).date()
    days = f"start_date={today - datetime.timedelta(days=1)}&end_date={today + datetime.timedelta(days=1)}"
    report = ask(f"/global/spend/report?{days}")
    return sum(team["total_spend"] for day in report for team in day["teams"])


def check(spans, answered, before):
    rows = rows_of(spans)
    expected = sorted((model, *counts[:2], cost(model, *counts)) for model, *counts in answered)
    assert len(rows) == len(answered), (len(rows), answered)
    booked = sorted((row["model"], row["prompt_tokens"], row["completion_tokens"], row["spend"]) for row in rows)
    for (model, *counts, spend), (row_model, *row_counts, row_spend) in zip(expected, booked):
        assert (model, counts) == (row_model, row_counts), (expected, booked)
        assert close(spend, row_spend), (expected, booked)
    for row in rows:
        assert row["end_user"] == "customer-otlp", row
        assert row["request_tags"] == [f"service.name:{SERVICE}", "deployment.environment.name:test"], row
    assert sum(row["status"] == "failure" for row in rows) == 1, rows
    total = sum(spend for *_, spend in expected)
    assert close(reported() - before, total), (reported(), before, total)
    [tag] = [tag for tag in ask("/spend/tags") if tag["individual_request_tag"] == f"service.name:{SERVICE}"]
    assert tag["log_count"] == len(rows) and close(tag["total_spend"], total), tag
    print(f"{len(rows)} calls, {total:.9f} USD: as the provider answered")


def rejected():
    """The spans that the server has rejected."""
    start = 'litespend_otlp_spans_total{outcome="rejected"} '
    [count] = [line.removeprefix(start) for line in text_of("/metrics").splitlines() if line.startswith(start)]
    return int(count)


def check_rejected(provider, finished, traces):
    """A streamed call that does not ask for its token counts has no cost, so its span cannot be booked. The exporter takes
    the answer as a success. The server counts the span, and its log has the reason."""
    before, spend = rejected(), reported()
    finished.clear()
    client = openai.OpenAI(base_url=provider.url, api_key="sk-stub", max_retries=0)
    messages = [{"role": "user", "content": "the-secret-prompt"}]
    assert [piece for piece in client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)]
    assert traces.force_flush(), "the span was not exported"
    [span] = finished.get_finished_spans()
    assert "gen_ai.usage.input_tokens" not in span.attributes, span.attributes
    assert OTLPSpanExporter().export([span]) == SpanExportResult.SUCCESS
    assert rejected() == before + 2, (before, rejected())
    assert ask(f"/spend/logs?request_id={id_of(span)}") == [] and close(reported(), spend)
    with open(LOG) as file:
        log = file.read()
    assert "spans were not booked" in log and "both are missing" in log and "the-secret-prompt" not in log, log
    print("a call without token counts is rejected, counted and logged")


def main():
    before = reported()
    provider = Provider()
    finished = InMemorySpanExporter()
    exporter = OTLPSpanExporter()
    traces = TracerProvider()
    for processor in (NamesTheCustomer(), SimpleSpanProcessor(finished), BatchSpanProcessor(exporter)):
        traces.add_span_processor(processor)
    OpenAIInstrumentor().instrument(tracer_provider=traces)
    make_calls(traces.get_tracer("shop"), provider)
    assert traces.force_flush(), "the spans were not exported"
    spans = finished.get_finished_spans()
    answered = list(provider.answered)
    answered += [("claude-sonnet-4-5-20250929", 1000, 100, 700), ("claude-sonnet-4-5-20250929", 1000, 100)]
    check(spans, answered, before)

    # The same batch again, then in other batches, packed, and one by one. Nothing counts twice.
    packing = OTLPSpanExporter(compression=Compression.Gzip)
    for sender, batch in [(exporter, spans), (packing, spans[::-1]), *((packing, [span]) for span in spans)]:
        assert sender.export(batch) == SpanExportResult.SUCCESS
    check(spans, answered, before)

    check_rejected(provider, finished, traces)

    # A key that is unknown is refused.
    refused = OTLPSpanExporter(headers={"Authorization": "Bearer sk-unknown"})
    assert refused.export(spans) == SpanExportResult.FAILURE
    traces.shutdown()
    provider.shutdown()


main()
