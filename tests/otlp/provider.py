"""A stub of OpenAI's API: answers with made-up usage, and remembers what it answered."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The model that is asked -> the model that answers.
SNAPSHOTS = {"gpt-4o": "gpt-4o-2024-08-06", "gpt-4o-mini": "gpt-4o-mini-2024-07-18"}


class Provider(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        # One entry per call: (model, input tokens, output tokens). A call that is refused has no tokens.
        self.answered = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next_usage(self, model, has_output):
        with self.lock:
            number = len(self.answered)
            usage = (137 * (number + 1), 31 * (number + 1) if has_output else 0)
            self.answered.append((model, *usage))
        return usage


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content_type, body):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, status, value):
        self.answer(status, "application/json", json.dumps(value).encode())

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request.get("user") == "limited":
            with self.server.lock:
                self.server.answered.append((request["model"], 0, 0))
            error = {"message": "slow down", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
            self.answer_json(429, {"error": error})
        elif self.path.endswith("/embeddings"):
            self.embed(request)
        elif request.get("stream"):
            self.stream(request)
        else:
            self.complete(request)

    def embed(self, request):
        tokens, _ = self.server.next_usage(request["model"], False)
        data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self.answer_json(200, {"object": "list", "model": request["model"], "data": data, "usage": usage})

    def usage(self, request):
        model = SNAPSHOTS.get(request["model"], request["model"])
        prompt, completion = self.server.next_usage(model, True)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return model, usage

    def complete(self, request):
        model, usage = self.usage(request)
        message = {"role": "assistant", "content": "It depends."}
        choices = [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
        whole = {"id": f"chatcmpl-{usage['total_tokens']}", "object": "chat.completion", "created": 1}
        self.answer_json(200, whole | {"model": model, "choices": choices, "usage": usage})

    def stream(self, request):
        """Sends token counts only if they are asked for, as OpenAI does."""
        has_usage = (request.get("stream_options") or {}).get("include_usage")
        model, usage = self.usage(request)
        chunk = {"id": f"chatcmpl-{usage['total_tokens']}", "object": "chat.completion.chunk", "created": 1, "model": model}
        delta = [{"index": 0, "delta": {"role": "assistant", "content": "Piece"}, "finish_reason": None}]
        end = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        events = [chunk | {"choices": delta}, chunk | {"choices": end}]
        if has_usage:
            events.append(chunk | {"choices": [], "usage": usage})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        self.answer(200, "text/event-stream", "".join(lines).encode())
