"""A workflow that asks twice, which the scripts for A2A and MCP clients use. The first argument is the service's URL."""

import json
import sys
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
