"""What OpenAPI can't say, each with its reason; run.sh hands this to schemathesis.

No operation and no check is left out: only a failure whose answer gives one of these reasons does not count, and how many
did not is printed at the end.
"""

import atexit
import collections

import schemathesis

# Words of a refusal of a request that fits the document -> what the document can't rule out.
UNSAYABLE = {
    "must be on or before": "a start after the end",
    "must be on or after": "a start after the end",
    "range too large": "a range of days that is too long",
    "days at most": "a range of days that is too long",
    "must be at most 400 days": "a range of days that is too long",
    "is before the year 2000": "a time that no call can have",
    "total_tokens: is larger than": "counts whose sum is too large",
    "in the future": "a time that no call can have",
    "end_time: is before start_time": "a start after the end",
    "endTime: is before startTime": "a start after the end",
    "after start_time": "an end too long after the start",
    "after startTime": "an end too long after the start",
    "No team_id associated": "an id that is needed where the key has none",
    "No user_id associated": "an id that is needed where the key has none",
    "IP address already exists": "an address that is on the list already",
    "Start date and end date are required": "days that are needed unless another parameter is given",
    "customer_id requires team_id": "an id that goes with another one only",
    "session_cursor must be": "a cursor that no page has given",
    "Input should be the cursor": "a cursor that no page has given",
    "summarize=false": "pages that go with rows only",
    "must be provided": "one of two forms of a body",
    "set either the token counts or a usage object": "one of two forms of a body",
    "model: is missing": "a model that is needed unless the answer names one",
    "cost: is missing, and cannot be calculated": "one of several forms of a body",
    "contains a number of more than": "numbers within an object of any form",
    "id: is missing": "an id that either of two fields may give",
    "cost: is missing, and: ": "a model, a message or a response that can't be priced",
    "is not an ExportTraceServiceRequest": "spans within objects of any form",
    "Bad Request - ": "a model, a message or a response that can't be priced",
}
dropped = collections.Counter()


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Whether a failure counts."""
    kind, text = type(failure).__name__, response.text
    if kind == "RejectedPositiveData":
        for words, reason in UNSAYABLE.items():
            if words in text:
                dropped[reason] += 1
                return False
    # As in the reference, one of the two days alone is not looked at.
    days = {"start_date", "end_date"} & set(case.query or {})
    if kind == "AcceptedNegativeData" and case.path == "/spend/logs" and len(days) == 1:
        dropped["a day that is not looked at without the other"] += 1
        return False
    # Records are refused one by one, in an answer that is good for the others.
    if kind == "AcceptedNegativeData" and case.path.startswith("/spend/usage"):
        results = response.json().get("results", [])
        if any(result["status"] == "error" for result in results):
            dropped["a record that is refused beside others"] += 1
            return False
    return True


@schemathesis.hook
def before_call(context, case, kwargs):
    """An address list without this machine in it would refuse every request that follows."""
    if case.path.endswith("/allowed_ip") and case.query:
        case.query.pop("force", None)


@atexit.register
def say():
    for reason, count in sorted(dropped.items()):
        print(f"not counted: {reason}: {count}")
