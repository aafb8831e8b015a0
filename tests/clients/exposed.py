"""A workflow that asks twice, which the scripts for A2A and MCP clients use. The first argument is the service's URL."""

import http.server
import json
import sys
import threading
import time
import urllib.request

URL = sys.argv[1]


def request(method, path, body):
    body = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{URL}/api/v1{path}", body, headers, method=method)) as answer:
        return json.load(answer)


def define(expose):
    """Stores the workflow under a new name, and returns the name."""
    name = f"asked-{time.time_ns()}"
    step = lambda id, next, config: {
        "id": id, "type": "callback", "next_step": next, "callback_config": config,
        "input_mapping": {"question": f"What about {id}, after ${{workflow.input.text:-nothing}}?"},
    }
    steps = {"approval": step("approval", "words", {"approval": {}}), "words": step("words", None, {})}
    request("PUT", f"/workflow-names/{name}", {"start_step": "approval", "steps": steps, "expose": expose,
            "description": "Asks for an approval, then for words."})
    return name


class Receiver(http.server.ThreadingHTTPServer):
    """Takes push notifications, and keeps their headers and bodies."""

    def __init__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                self.server.got.append((headers, json.loads(body)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.got = []
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def until(self, is_last):
        """What has come, as soon as something is the last of it."""
        for _ in range(300):
            if any(is_last(body) for _, body in self.got):
                return self.got
            time.sleep(0.1)
        raise TimeoutError(self.got)
