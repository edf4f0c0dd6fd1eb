"""LiteLLM's SDK as a client: python litellm_sdk.py ADDRESS MASTER_KEY json_array|ndjson|single"""

import asyncio
import json
import sys
import urllib.parse
import urllib.request

import litellm
from litellm.integrations.generic_api.generic_api_callback import GenericAPILogger

ADDRESS, MASTER_KEY, FORM = sys.argv[1:]
litellm.suppress_debug_info = True


def ask(path, body=None):
    request = urllib.request.Request(
        ADDRESS + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {MASTER_KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


async def calls(key, form):
    """Makes calls whose answers are made up by the SDK, and returns what it says of each: id to cost and model."""
    logger = GenericAPILogger(
        endpoint=f"{ADDRESS}/spend/usage/litellm", headers={"Authorization": f"Bearer {key}"}, log_format=form
    )
    told = {}

    class Listener(litellm.integrations.custom_logger.CustomLogger):
        async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
            payload = kwargs["standard_logging_object"]
            told[payload["id"]] = (payload["response_cost"], payload["total_tokens"], payload["status"])

        async_log_failure_event = async_log_success_event

    litellm.callbacks = [logger, Listener()]
    messages = [{"role": "user", "content": "What does a call cost? " * 20}]
    answers = [
        await litellm.acompletion(
            model=model,
            messages=messages,
            mock_response="It depends on the model, and on how much is said. " * 10,
            user="customer-sdk",
            metadata={"tags": ["sdk", form]},
        )
        for model in ("gpt-4o", "anthropic/claude-sonnet-4-5-20250929", "gemini/gemini-2.5-flash")
    ]
    pieces = await litellm.acompletion(
        model="gpt-4o-mini", messages=messages, mock_response="Streamed, piece by piece.", stream=True
    )
    answers.append([piece async for piece in pieces][0])
    try:
        await litellm.acompletion(model="gpt-4o", messages=messages, mock_response=Exception("out of luck"))
        raise SystemExit("the call should have failed")
    except litellm.exceptions.InternalServerError:
        pass
    for _ in range(100):
        if len(told) == len(answers) + 1:
            break
        await asyncio.sleep(0.1)
    batch = list(logger.log_queue)
    await logger.flush_queue()
    # A batch that is sent again, as a client does that did not hear the answer, changes nothing.
    logger.log_queue.extend(batch)
    await logger.flush_queue()
    return told, [answer.id for answer in answers]


async def main():
    key = ask("/key/generate", {"key_alias": f"sdk-{FORM}", "user_id": "sdk", "permissions": {"book_usage": True}})["key"]
    told, answered = await calls(key, FORM)
    assert len(told) == 5 and set(answered) <= set(told), (told, answered)
    matched = 0
    for request_id, (cost, tokens, status) in told.items():
        rows = ask(f"/spend/logs?request_id={urllib.parse.quote(request_id)}")
        assert len(rows) == 1, (request_id, rows)
        (row,) = rows
        assert row["spend"] == (cost or 0), (row["spend"], cost)
        assert row["total_tokens"] == tokens and row["status"] == status, row
        assert ((cost or 0) > 0) == (status == "success"), (cost, status)
        matched += 1
    booked = sum(cost or 0 for cost, _, _ in told.values())
    spent = ask(f"/key/info?key={key}")["info"]["spend"]
    assert abs(spent - booked) < 1e-12, (spent, booked)
    tags = {entry["individual_request_tag"]: entry for entry in ask("/spend/tags")}
    assert tags[FORM]["log_count"] == 3, tags
    print(f"{FORM}: calls found with the SDK's own cost: matched {matched} / {len(told)}")


asyncio.run(main())
