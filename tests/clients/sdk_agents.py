"""Agents of the official A2A SDK, called by the service: `python sdk_agents.py URL NEW OLD…`.

`NEW` is a Python environment with the SDK's line 1.x, each `OLD` one with an older line.
"""

import json
import pathlib
import sys
import time
import urllib.request

from service import Service, free_port, start, until

API, NEW, *OLD = sys.argv[1:]
call = Service(API).call


def run(name, url, config, mapping):
    agent = call("POST", "/agents", {"name": name, "url": url, "config": config})
    step = {"id": "ask", "agent_name": name, "input_mapping": mapping}
    call("PUT", f"/workflow-names/{name}", {"start_step": "ask", "steps": {"ask": step}})
    run_id = call("POST", f"/workflow-names/{name}/execute", {"input_data": {}})["run_id"]
    deltas = []
    with urllib.request.urlopen(f"{API}/api/v1/runs/{run_id}/events") as events:
        event = {}
        for line in events:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            event[field] = value
            if field:
                continue
            if event.get("event") == "step.output.delta":
                deltas.append(json.loads(event["data"]))
            if event.get("event") == "end":
                break
            event = {}
    ended = call("GET", f"/runs/{run_id}")
    assert ended["status"] == "COMPLETED", ended
    seen = until("the version is known", lambda: call("GET", f"/agents/{agent['id']}").get("protocol_seen"))
    return ended["output_data"], seen, deltas


def pushes():
    """Number of push notifications that the service has accepted."""
    with urllib.request.urlopen(f"{API}/metrics") as response:
        lines = [line.decode() for line in response if b"agent-pushes" in line and line.startswith(b"http_requests_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'status="204"' in line)


def ask(name, url, config, answer):
    """An agent that asks: the run waits, and goes on with the answer, or is cancelled if there is none."""
    call("POST", "/agents", {"name": name, "url": url, "config": config})
    step = {"id": "ask", "agent_name": name, "input_mapping": {"text": "ask me"}, "on_question": "ask"}
    call("PUT", f"/workflow-names/{name}", {"start_step": "ask", "steps": {"ask": step}})
    run_id = call("POST", f"/workflow-names/{name}/execute", {"input_data": {}})["run_id"]
    [asked] = until("a question", lambda: call("GET", f"/runs/{run_id}/callbacks"))
    question = asked["question"]
    assert question["text"] == "What shall I shout?" and question["state"] == "input-required", asked
    if answer is None:
        call("POST", f"/runs/{run_id}/cancel", {})
        return question
    path = asked["url"].partition("/api/v1")[2]
    call("POST", path, answer)
    ended = until("the end", lambda: [run for run in [call("GET", f"/runs/{run_id}")] if run["status"] != "RUNNING"])[0]
    assert ended["status"] == "COMPLETED", ended
    assert ended["output_data"]["task_id"] == question["task_id"], (ended, question)
    return ended["output_data"]


stamp = time.time_ns()
started = []
try:
    new = free_port()
    started.append(start(NEW, "sdk_agent_1.py", new))
    cases = [
        ("1.x by JSON-RPC", f"http://127.0.0.1:{new}/rpc/", None, "1.0"),
        ("1.x by JSON-RPC, not streamed", f"http://127.0.0.1:{new}/rpc/", {"streaming": False}, "1.0"),
        ("1.x by JSON-RPC, fixed", f"http://127.0.0.1:{new}/rpc/", {"protocol": "1.0", "streaming": True}, "1.0"),
        ("1.x by HTTP+JSON", f"http://127.0.0.1:{new}/rest/", None, "1.0"),
    ]
    for python in OLD:
        port = free_port()
        started.append(start(python, "sdk_agent_0.py", port))
        url = f"http://127.0.0.1:{port}/"
        line = pathlib.Path(python).name
        cases += [(line, url, None, "0.3"), (f"{line}, streamed", url, {"streaming": True}, "0.3")]
    for number, (what, url, config, version) in enumerate(cases):
        output, seen, deltas = run(f"sdk-{stamp}-{number}", url, config, {"text": "to be or not"})
        assert output["text"] == "TO BE OR NOT", (what, output)
        assert output["data"] == {"words": 4} and output["response"] == "done", (what, output)
        assert seen == version, (what, seen)
        print(f"a2a-sdk, {what}: answered by A2A {seen}, {len(deltas)} pieces seen")
    for number, (what, url, config, version) in enumerate(cases):
        output = ask(f"sdk-{stamp}-ask-{number}", url, config, {"text": "this one"})
        assert output["text"] == "THIS ONE", (what, output)
        print(f"a2a-sdk, {what}: asked, and answered in the same task")
    # The cancellation of a run that waits reaches the agent.
    question = ask(f"sdk-{stamp}-ask-cancelled", cases[0][1], None, None)
    body = {"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": question["task_id"]}}
    headers = {"content-type": "application/json", "A2A-Version": "1.0"}

    def state():
        request = urllib.request.Request(cases[0][1], json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as response:
            return json.load(response)["result"]["status"]["state"] == "TASK_STATE_CANCELED"

    until("the task is cancelled", state)
    print("a2a-sdk, 1.x: the task of a cancelled run was cancelled")
    # Pieces are seen while the agent works.
    for what, url, config, version in [cases[0], cases[3], cases[5]]:
        name = f"sdk-{stamp}-{cases.index((what, url, config, version))}-slow"
        output, _, deltas = run(name, url, config, {"text": "slowly but surely"})
        assert output["text"] == "SLOWLY BUT SURELY", (what, output)
        seen = "".join(delta["text"] for delta in deltas if delta["artifact_id"] == "answer")
        # The last pieces are not sent once the output is there.
        assert seen and output["text"].startswith(seen), (what, deltas)
        print(f"a2a-sdk, {what}, slowly: {len(deltas)} pieces seen")
    # The push sender of the SDK reports to the service.
    pushing = [("1.x", f"http://127.0.0.1:{new}/push/", None)]
    for python in OLD:
        port = free_port()
        started.append(start(python, "sdk_agent_0.py", port, "push"))
        pushing.append((pathlib.Path(python).name, f"http://127.0.0.1:{port}/", {}))
    for number, (what, url, config) in enumerate(pushing):
        before = pushes()
        output, _, _ = run(f"sdk-{stamp}-push-{number}", url, config, {"text": "slowly but surely"})
        assert output["text"] == "SLOWLY BUT SURELY", (what, output)
        # The last one may come after the end, which the others have shown.
        assert pushes() > before, f"{what}: no push notification was accepted"
        print(f"a2a-sdk, {what}: {pushes() - before:.0f} push notifications accepted")
    # A card of 1.x that accepts JSON gets JSON.
    output, _, _ = run(f"sdk-{stamp}-json", cases[0][1], None, {"n": 7})
    assert "N" in output["text"] and "7" in output["text"], output
finally:
    for process in started:
        process.terminate()
