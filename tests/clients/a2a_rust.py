"""The official Rust SDK of A2A: `python a2a_rust.py URL PROGRAM`, where `PROGRAM` is the one of the folder `a2a_rust`.

Its client calls a workflow as an agent; then its agent is called by workflows.
"""

import subprocess
import sys
import time

from exposed import URL, define
from service import Service, free_port, listens, until

PROGRAM = sys.argv[2]
call = Service(URL).call

name = define({"a2a": True})
subprocess.run([PROGRAM, "client", f"{URL}/a2a/default/{name}"], check=True, timeout=120)

port = free_port()
agent = subprocess.Popen([PROGRAM, "agent", str(port)])
try:
    until("the agent listens", lambda: listens(port))
    for number, (what, config) in enumerate([("streamed", None), ("not streamed", {"streaming": False})]):
        name = f"rust-{time.time_ns()}-{number}"
        stored = call("POST", "/agents", {"name": name, "url": f"http://127.0.0.1:{port}/", "config": config})
        mapping = {"text": "${workflow.input.text}"}
        step = {"id": "ask", "agent_name": name, "input_mapping": mapping, "on_question": "ask"}
        call("PUT", f"/workflow-names/{name}", {"start_step": "ask", "steps": {"ask": step}})

        def start(text):
            return call("POST", f"/workflow-names/{name}/execute", {"input_data": {"text": text}})["run_id"]

        def end(run_id):
            runs = lambda: [run for run in [call("GET", f"/runs/{run_id}")] if run["status"] in ("COMPLETED", "FAILED")]
            ended = until("the end", runs)[0]
            assert ended["status"] == "COMPLETED", (what, ended)
            return ended["output_data"]

        output = end(start("to be or not"))
        assert output["text"] == "TO BE OR NOT" and output["response"] == "done", (what, output)
        run_id = start("ask me")
        [asked] = until("a question", lambda: call("GET", f"/runs/{run_id}/callbacks"))
        assert asked["question"]["text"] == "What shall I shout?", (what, asked)
        call("POST", asked["url"].partition("/api/v1")[2], {"text": "this one"})
        output = end(run_id)
        assert output["text"] == "THIS ONE" and output["task_id"] == asked["question"]["task_id"], (what, output)
        seen = until("the version is known", lambda: call("GET", f"/agents/{stored['id']}").get("protocol_seen"))
        assert seen == "1.0", (what, seen)
        print(f"a2a-server-lf, {what}: answered by A2A {seen}, asked and answered")
finally:
    agent.terminate()
