"""MCP servers of the official SDK as agents of the service: `python sdk_tools.py URL NEW OLD`.

`NEW` is a Python environment with the SDK's line 2.x, `OLD` one with line 1.x.
"""

import sys
import time

from service import Service, free_port, start, until

API, NEW, OLD = sys.argv[1:]
call = Service(API).call
SERVER = "sdk_tool_server.py"


def run(name, mapping):
    step = {"id": "ask", "agent_name": name, "input_mapping": mapping}
    stored = call("PUT", f"/workflow-names/{name}", {"start_step": "ask", "steps": {"ask": step}})
    run_id = call("POST", f"/workflow-names/{name}/execute", {"input_data": {}})["run_id"]
    runs = lambda: [run for run in [call("GET", f"/runs/{run_id}")] if run["status"] in ("COMPLETED", "FAILED")]
    return until("the end", runs)[0], [warning["type"] for warning in stored.get("warnings", [])]


stamp = time.time_ns()
cases = [
    ("2.x", NEW, "sessions", {}, "2026-07-28"),
    ("2.x, stateless", NEW, "stateless", {}, "2026-07-28"),
    ("2.x, by the handshake", NEW, "sessions", {"protocol": "2025-11-25"}, "2025-11-25"),
    ("2.x, stateless, by the handshake", NEW, "stateless", {"protocol": "2025-06-18"}, "2025-06-18"),
    ("1.x", OLD, "sessions", {}, "2025-11-25"),
    ("1.x, stateless", OLD, "stateless", {}, "2025-11-25"),
]
for number, (what, python, mode, config, revision) in enumerate(cases):
    port = free_port()
    process, url = start(python, SERVER, port, mode), f"http://127.0.0.1:{port}/mcp"
    try:
        agents = {}
        for tool in ("add", "shout", "none"):
            name = agents[tool] = f"tool-{stamp}-{number}-{tool}"
            once = {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}
            agent = {"name": name, "url": url, "kind": "mcp", "config": {"tool": tool, **config}, "retry_config": once}
            id = call("POST", "/agents", agent)["id"]
            if tool == "add":
                first = id
            health = call("GET", f"/agents/{id}/health")
            assert health["status"] == ("unhealthy" if tool == "none" else "healthy"), (what, health)
        ended, warnings = run(agents["add"], {"a": 40, "b": 2})
        assert ended["output_data"]["data"] == {"sum": 42}, (what, ended)
        assert not warnings, (what, warnings)
        ended, _ = run(agents["shout"], {"text": "to be or not"})
        assert ended["output_data"]["text"] == "TO BE OR NOT", (what, ended)
        ended, _ = run(agents["shout"], {"text": ""})
        assert ended["status"] == "FAILED" and "nothing to shout" in ended["error_message"], (what, ended)
        _, warnings = run(agents["add"], {"a": 1})
        assert warnings == ["tool_argument_missing"], (what, warnings)
        ended, warnings = run(agents["none"], {})
        assert ended["status"] == "FAILED" and warnings == ["tool_not_found"], (what, ended, warnings)
        shown = call("GET", f"/agents/{first}")
        assert shown["protocol_seen"] == revision, (what, shown)
        assert [tool["name"] for tool in shown["card"]["content"]["tools"]] == ["add", "shout"], (what, shown)
        if mode == "sessions" and revision != "2026-07-28":
            # A server that was started again knows no session.
            process.terminate()
            process.wait()
            process = start(python, SERVER, port, mode)
            ended, _ = run(agents["add"], {"a": 1, "b": 2})
            assert ended["output_data"]["data"] == {"sum": 3}, (what, ended)
        print(f"mcp, {what}: answered by {shown['protocol_seen']}")
    finally:
        process.terminate()
