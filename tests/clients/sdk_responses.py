"""What the service sends to the Responses API, and answers that it reads, held against the types of the official package.

`python sdk_responses.py URL` runs an agent of kind `responses` against a stand-in, which checks each request against the
parameters of `client.responses.create` and answers with what `openai.types.responses.Response` accepts. `ResponseTextDeltaEvent`
and the like are the events of the stream.
"""

import json
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydantic
from openai.types import responses

API = sys.argv[1]
Parameters = {
    True: pydantic.TypeAdapter(responses.response_create_params.ResponseCreateParamsStreaming),
    False: pydantic.TypeAdapter(responses.response_create_params.ResponseCreateParamsNonStreaming),
}
known, seen = {}, []


def response(id, model, status, text):
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": [part]}
    usage = {
        "input_tokens": 3, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 8,
    }
    body = {
        "id": id, "object": "response", "created_at": 1, "model": model, "status": status, "output": [message],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage,
    }
    responses.Response.model_validate(body)
    return body


class Model(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, body):
        body = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        id = self.path.rsplit("/", 1)[1]
        self.answer(response(id, "m", "completed" if known[id] > 1 else "in_progress", "later"))
        known[id] += 1

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Parameters[asked.get("stream", False)].validate_python(asked, strict=False)
        seen.append(asked)
        if asked.get("background"):
            id = f"resp_{len(known)}"
            known[id] = 0
            return self.answer(response(id, asked["model"], "queued", ""))
        if not asked.get("stream"):
            return self.answer(response("resp", asked["model"], "completed", '{"said": "at once"}'))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        delta = {
            "type": "response.output_text.delta", "delta": "streamed", "content_index": 0, "item_id": "msg",
            "output_index": 0, "sequence_number": 1, "logprobs": [],
        }
        responses.ResponseTextDeltaEvent.model_validate(delta)
        done = {
            "type": "response.completed", "sequence_number": 2,
            "response": response("resp", asked["model"], "completed", "streamed"),
        }
        responses.ResponseCompletedEvent.model_validate(done)
        for event in (delta, done):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


def call(method, path, body=None):
    request = urllib.request.Request(f"{API}/api/v1{path}", method=method, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, json.dumps(body).encode() if body is not None else None) as answer:
        return json.load(answer)


server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
threading.Thread(target=server.serve_forever, daemon=True).start()
talk = [{"role": "user", "content": "hello"}]
schema = {"type": "json_schema", "name": "said", "schema": {"type": "object"}, "strict": True}
cases = [
    ("at once", {}, {"text": "hello"}, '{"said": "at once"}'),
    ("with all", {"instructions": "Be brief.", "response_format": schema,
        "parameters": {"tools": [{"type": "web_search"}], "max_output_tokens": 99, "reasoning": {"effort": "low"}}},
        {"input": talk, "previous_response_id": "resp_before"}, '{"said": "at once"}'),
    ("JSON", {"response_format": "json"}, {"messages": talk}, '{"said": "at once"}'),
    ("streamed", {"streaming": True}, {"text": "hello"}, "streamed"),
    ("in the background", {"background": True}, {"text": "hello"}, "later"),
]
for number, (what, config, mapping, expected) in enumerate(cases):
    name = f"model-{time.time_ns()}"
    url = f"http://127.0.0.1:{server.server_port}/v1"
    once = {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}
    agent = {"name": name, "url": url, "kind": "responses", "config": {"model": "m", **config}, "retry_config": once}
    call("POST", "/agents", agent)
    step = {"id": "ask", "agent_name": name, "input_mapping": mapping}
    call("PUT", f"/workflow-names/{name}", {"start_step": "ask", "steps": {"ask": step}})
    run_id = call("POST", f"/workflow-names/{name}/execute", {"input_data": {}})["run_id"]
    for _ in range(300):
        ended = call("GET", f"/runs/{run_id}")
        if ended["status"] in ("COMPLETED", "FAILED"):
            break
        time.sleep(0.1)
    assert ended["status"] == "COMPLETED" and ended["output_data"]["text"] == expected, (what, ended)
    assert ended["output_data"]["usage"]["output_tokens"] == 5, (what, ended)
    if "response_format" in config:
        assert ended["output_data"]["content"] == {"said": "at once"}, (what, ended)
    print(f"responses, {what}: {sorted(seen[-1])}")
assert len(seen) == len(cases), seen
