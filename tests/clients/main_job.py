"""The main job with a client that openapi-python-client made: agent, workflow, run, poll to its end."""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

from api import Client
from api.api.agents import create_agent
from api.api.runs import get_run, list_runs
from api.api.workflows import create_workflow, execute_workflow, export_definitions, import_definitions
from api.models import (
    AgentKind, AgentStep, AgentStepInputMapping, CreateAgentRequest, ExecuteRequest, ExecuteRequestInputData,
    RunSortKey, RunStatus, Steps, WorkflowDefinition,
)


class Echo(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


agent = HTTPServer(("127.0.0.1", 0), Echo)
threading.Thread(target=agent.serve_forever, daemon=True).start()
client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
name = f"python-{time.time_ns()}"

url = f"http://127.0.0.1:{agent.server_port}/"
create_agent.sync(client=client, body=CreateAgentRequest(name=name, url=url, kind=AgentKind.AGENT_KIND_HTTP))

mapping = AgentStepInputMapping.from_dict({"text": "${workflow.input.text}"})
steps = Steps.from_dict({"echo": AgentStep(id="echo", agent_name=name, input_mapping=mapping).to_dict()})
workflow = create_workflow.sync(client=client, body=WorkflowDefinition(name=name, start_step="echo", steps=steps))
stored = workflow.workflow_data.steps["echo"]
assert isinstance(stored, AgentStep) and stored.agent_name == name, workflow

body = ExecuteRequest(input_data=ExecuteRequestInputData.from_dict({"text": "hello"}))
run = execute_workflow.sync(workflow.id, client=client, body=body)
while run.status in (RunStatus.RUN_STATUS_PENDING, RunStatus.RUN_STATUS_RUNNING):
    time.sleep(0.05)
    run = get_run.sync(run.run_id, client=client)
assert run.status == RunStatus.RUN_STATUS_COMPLETED and run.output_data["text"] == "hello", run
found = list_runs.sync(
    # This maker repeats a parameter for several values, of which the last one counts.
    client=client, status=[RunStatus.RUN_STATUS_COMPLETED], name_prefix=name,
    sort_by=RunSortKey.RUN_SORT_KEY_UPDATED_AT,
)
assert [one.run_id for one in found.items] == [run.run_id], found

# What was exported can be imported as it is.
report = import_definitions.sync(client=client, body=export_definitions.sync(client=client), dry_run=True)
assert not report.errors, report
print("openapi-python-client: the main job is done")
