"""What the service sends to chat completions, and answers that it reads, held against types of the official package.

`python sdk_chat.py URL` runs agents of kind `openai` against a stand-in, which checks each request against the
parameters of `client.chat.completions.create`, and answers with what `openai.types.chat.ChatCompletion` and
`ChatCompletionChunk` accept.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydantic
from openai.types import chat

from service import Service, until

call = Service(sys.argv[1]).call
Parameters = {
    True: pydantic.TypeAdapter(chat.completion_create_params.CompletionCreateParamsStreaming),
    False: pydantic.TypeAdapter(chat.completion_create_params.CompletionCreateParamsNonStreaming),
}
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
SAID = '{"said": "hello"}'
seen = []


class Model(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Parameters[asked.get("stream", False)].validate_python(asked, strict=False)
        assert self.path == "/v1/chat/completions", self.path
        seen.append(asked)
        base = {"id": "chatcmpl-1", "created": 1, "model": asked["model"]}
        self.send_response(200)
        if not asked.get("stream"):
            message = {"role": "assistant", "content": SAID, "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            body = {**base, "object": "chat.completion", "choices": [choice], "usage": USAGE}
            chat.ChatCompletion.model_validate(body)
            body = json.dumps(body).encode()
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            return self.wfile.write(body)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        choices = [
            [{"index": 0, "delta": {"role": "assistant", "content": SAID[:6]}, "finish_reason": None}],
            [{"index": 0, "delta": {"content": SAID[6:]}, "finish_reason": None}],
            [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        ]
        # The usage comes in a last piece without a choice, if the request asks for it.
        pieces = [{"choices": choice} for choice in choices]
        if (asked.get("stream_options") or {}).get("include_usage"):
            pieces.append({"choices": [], "usage": USAGE})
        for piece in pieces:
            chunk = {**base, "object": "chat.completion.chunk", **piece}
            chat.ChatCompletionChunk.model_validate(chunk)
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
threading.Thread(target=server.serve_forever, daemon=True).start()
said = [("user", "hello"), ("assistant", "yes?"), ("user", "well")]
talk = [{"role": role, "content": content} for role, content in said]
schema = {"type": "json_schema", "json_schema": {"name": "said", "schema": {"type": "object"}, "strict": True}}
cases = [
    ("a text", {}, {"text": "hello"}),
    ("with all", {"system_prompt": "Be brief.", "response_format": schema,
        "parameters": {"temperature": 0.5, "max_completion_tokens": 99, "seed": 7}}, {"messages": talk}),
    ("JSON", {"response_format": "json"}, {"text": "hello"}),
    ("streamed", {"streaming": True}, {"text": "hello"}),
]
for number, (what, config, mapping) in enumerate(cases):
    name = f"chat-{time.time_ns()}"
    url = f"http://127.0.0.1:{server.server_port}/v1"
    once = {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}
    agent = {"name": name, "url": url, "kind": "openai", "config": {"model": "m", **config}, "retry_config": once}
    call("POST", "/agents", agent)
    step = {"id": "ask", "agent_name": name, "input_mapping": mapping}
    call("PUT", f"/workflow-names/{name}", {"start_step": "ask", "steps": {"ask": step}})
    run_id = call("POST", f"/workflow-names/{name}/execute", {"input_data": {}})["run_id"]
    runs = lambda: [run for run in [call("GET", f"/runs/{run_id}")] if run["status"] in ("COMPLETED", "FAILED")]
    ended = until("the end", runs)[0]
    assert ended["status"] == "COMPLETED" and ended["output_data"]["text"] == SAID, (what, ended)
    assert ended["output_data"]["usage"] == USAGE, (what, ended)
    if "response_format" in config:
        assert ended["output_data"]["content"] == {"said": "hello"}, (what, ended)
    print(f"chat completions, {what}: {sorted(seen[-1])}")
assert len(seen) == len(cases), seen
