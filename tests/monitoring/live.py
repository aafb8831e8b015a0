"""Dashboards and alerts against a real Prometheus: live.py API_URL EXECUTOR_URL API_PID FOLDER.

Starts Prometheus and Alertmanager with the configuration of deploy/monitoring (other addresses, a scrape each second,
alerts without delay), and agents; lets the service work; checks that each query of a dashboard has data and that each
alert expression reads series that exist; stops the database and the API to see alerts fire. Takes about 20 s.
"""

import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import files

API, EXECUTOR, API_PID, FOLDER = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
DEADLINE_SECS = 30

# Series that begin with their first event, which this test does not cause, or that need a replica.
WITHOUT_SERIES = {
    'http_requests_total{status=~"5..", endpoint!~"/health.*"}',
    "db_pool_wait_seconds_bucket",
    "db_replica_used",
    # A webhook is disabled after days without success; tests/it/webhooks/limits.rs shows the series.
    "webhook_disabled",
}


class Agent(BaseHTTPRequestHandler):
    """Agents by path: a chat completion, a failure, or the input as the answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": "hello"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
            body = json.dumps({"id": "1", "model": "m", "choices": [choice], "usage": usage}).encode()
        self.send_response(503 if self.path == "/fail" else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def call(method, url, body=None):
    """Status and JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        return refusal.code, None


def define():
    """Agents, and workflows that complete, fail, wait, or exceed a limit."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Agent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    retry = {"retry_config": {"max_retries": 1}}
    chat = {"name": "chat", "url": f"{host}/v1", "kind": "openai", "config": {"model": "m", "price": {"output": 1}}}
    echo, fail, broken = (
        {"name": name, "url": f"{host}/{path}", "kind": "http"}
        for name, path in (("echo", "echo"), ("fail", "fail"), ("broken", "fail"))
    )
    # One agent fails all the time: an open breaker would stop its calls before enough of them have failed for the alert.
    fail["circuit_breaker_config"] = {"enabled": False}
    for agent in (echo, chat, fail, broken):
        status, _ = call("POST", f"{API}/api/v1/agents", agent | retry)
        assert status == 201, (agent, status)
    steps = {
        name: {"id": name, "agent_name": name, "input_mapping": {"text": "${workflow.input.text}"}}
        for name in ("echo", "chat", "fail", "broken")
    }
    wait = {"rest": {"id": "rest", "type": "wait", "wait_config": {"duration_seconds": 600}}}
    both = {"echo": steps["echo"] | {"next_step": "chat"}, "chat": steps["chat"]}
    limited = ("limited", "echo", both, {"calls": 1})
    for name, start, members, limits in (
        ("good", "echo", both, None), ("bad", "fail", {"fail": steps["fail"]}, None),
        ("broken", "broken", {"broken": steps["broken"]}, None), ("parked", "rest", wait, None), limited,
    ):
        workflow = {"start_step": start, "steps": members, "limits": limits}
        status, _ = call("PUT", f"{API}/api/v1/workflow-names/{name}", workflow)
        assert status in (200, 201), (name, status)


def load():
    """Requests and runs, a part of which fails."""
    for number in range(40):
        name = ("good", "bad", "good", "parked" if number < 4 else "broken")[number % 4]
        status, _ = call("POST", f"{API}/api/v1/workflow-names/{name}/execute", {"input_data": {"text": "hello"}})
        assert status == 202, (name, status)
    call("GET", f"{API}/api/v1/runs/none")


def poll(stop):
    """Requests and runs all the time, until the API is stopped: an increase needs a series that is there before."""
    # Two of five calls of agents fail; AgentCallsFailing begins at a quarter.
    names = itertools.cycle(("good", "bad", "bad", "limited"))
    while not stop.wait(0.2):
        try:
            call("GET", f"{API}/health/ready")
            call("GET", f"{API}/api/v1/runs")
            # 404 until it is defined.
            call("POST", f"{API}/api/v1/workflow-names/{next(names)}/execute", {"input_data": {"text": "hello"}})
        except OSError:
            return


class Server:
    """A program on a free port of this host."""

    def __init__(self, *names):
        # Packages have different names for the same program.
        self.program = next(filter(shutil.which, names))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"

    def start(self, *options):
        command = [self.program, f"--web.listen-address={self.address}", *options]
        with (FOLDER / f"logs/{self.program}.log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def get(self, path, **parameters):
        """JSON of an answer; None while the program starts."""
        url = f"http://{self.address}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            if refusal.code != 503:
                raise AssertionError(f"{path} {parameters}: {refusal.read().decode()}") from None
        except OSError:
            pass
        return None


class Alertmanager(Server):
    """An Alertmanager with the shipped configuration."""

    def __init__(self):
        super().__init__("alertmanager", "prometheus-alertmanager")
        config = f"--config.file={files.MONITORING}/alertmanager.yml"
        self.start(config, f"--storage.path={FOLDER}/alertmanager", "--cluster.listen-address=")

    def alerts(self):
        return {alert["labels"]["alertname"] for alert in self.get("/api/v2/alerts") or []}


class Prometheus(Server):
    """A Prometheus with the shipped configuration: other addresses, short intervals, alerts without delay."""

    def __init__(self, alertmanager):
        super().__init__("prometheus")
        config = (files.MONITORING / "prometheus.yml").read_text()
        lookup = "    dns_sd_configs:\n      - names: [{}]\n        type: A\n        port: {}\n        refresh_interval: 15s\n"
        executor = f'    static_configs:\n      - targets: ["{EXECUTOR.removeprefix("http://")}"]\n'
        for shipped, here in (
            ("api:8000", API.removeprefix("http://")),
            (lookup.format("api-replica", 8000), ""),
            (lookup.format("executor", 9464), executor),
            ("localhost:9090", self.address),
            ("alertmanager:9093", alertmanager.address),
            ("/etc/prometheus/rules", str(FOLDER / "rules")),
            (": 15s", ": 1s"),
            ("scrape_timeout: 10s", "scrape_timeout: 1s"),
        ):
            assert shipped in config, f"prometheus.yml has no {shipped!r}"
            config = config.replace(shipped, here)
        (FOLDER / "prometheus.yml").write_text(config)
        (FOLDER / "rules").mkdir()
        (FOLDER / "rules/workflow-api.yml").write_text(re.sub(r"\n        for: .*", "", files.RULES))
        self.start(f"--config.file={FOLDER}/prometheus.yml", f"--storage.tsdb.path={FOLDER}/prometheus")

    def data(self, path, **parameters):
        return (self.get(f"/api/v1/{path}", **parameters) or {"data": {}})["data"]

    def values(self, query):
        """Values of all series of a query."""
        found = self.data("query", query=query.replace("$__rate_interval", "1m"))
        return [float(series["value"][1]) for series in found["result"]]

    def firing(self):
        """Alerts that fire, by their names."""
        alerts = self.data("alerts").get("alerts", [])
        return {alert["labels"]["alertname"]: alert for alert in alerts if alert["state"] == "firing"}


def until(what, condition):
    """Waits until the condition returns nothing that is left to wait for."""
    deadline = time.monotonic() + DEADLINE_SECS
    while left := condition():
        if time.monotonic() > deadline:
            sys.exit(f"error: {what}: {left}")
        time.sleep(0.3)


def targets_down(prometheus):
    targets = prometheus.data("targets").get("activeTargets", [])
    jobs = {target["labels"]["job"] for target in targets if target["health"] == "up"}
    return {"workflow-api", "workflow-executor", "prometheus"} - jobs


def panels_without_data(prometheus):
    """Queries of dashboards without a number; of a panel whose series begin later, at least one query has to have one."""
    left = []
    for file, title, query in files.dashboard_queries():
        metrics = {metric + matchers for metric, matchers in files.selectors(query)}
        has_data = any(not math.isnan(value) for value in prometheus.values(query))
        if not has_data and not metrics & WITHOUT_SERIES:
            left.append((file, title, query))
    return left


def alerts_without_series(prometheus):
    selectors = {metric + matchers for _, query in files.alert_expressions() for metric, matchers in files.selectors(query)}
    return [one for one in sorted(selectors - WITHOUT_SERIES) if not prometheus.values(f"count({one})")]


def rules_with_errors(prometheus):
    groups = prometheus.data("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(list(files.alert_expressions()))
    return [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"]


def run_commands_of_the_runbook(prometheus):
    """Queries to Prometheus and to the database, as they are printed there."""
    text = files.RUNBOOK.read_text()
    queries = re.findall(r"\bquery '([^']+)'", text)
    statements = [one for one in re.findall(r'\bsql "([^"$]+)"', text) if "pg_terminate_backend" not in one]
    assert queries and statements
    for query in queries:
        prometheus.values(query)
    # All in one transaction that cannot write, but for those that mend something.
    writing = [one for one in statements if "recount_runs" in one]
    reading = [one for one in statements if one not in writing]
    transactions = ("BEGIN READ ONLY", *reading, "COMMIT", "BEGIN", *writing, "ROLLBACK")
    statements = "".join(f"{one};\n" for one in transactions)
    psql = ["psql", os.environ["DATABASE_URL"], "-X", "-q", "-v", "ON_ERROR_STOP=1"]
    subprocess.run(psql, input=statements.encode(), stdout=subprocess.DEVNULL, check=True)


def not_firing(prometheus, *names):
    return set(names) - set(prometheus.firing())


def check(prometheus, alertmanager):
    stop = threading.Event()
    threading.Thread(target=poll, args=(stop,), daemon=True).start()
    until("targets are not up", lambda: targets_down(prometheus))
    define()
    load()
    until("panels without data", lambda: panels_without_data(prometheus))
    until("alerts on series that do not exist", lambda: alerts_without_series(prometheus))
    until("rules with errors", lambda: rules_with_errors(prometheus))
    until("no alert", lambda: not_firing(prometheus, "RunFailureRatio", "AgentCallsFailing", "CircuitBreakerOpen"))
    run_commands_of_the_runbook(prometheus)
    for url in (API, EXECUTOR):
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            subprocess.run(["promtool", "check", "metrics"], input=answer.read(), check=True)

    subprocess.run([os.environ["TEST_PG_STOP"]], check=True, stdout=subprocess.DEVNULL)
    until("no alert without the database", lambda: not_firing(prometheus, "ApiNotReady", "HighErrorRate"))
    subprocess.run([os.environ["TEST_PG_START"]], check=True, stdout=subprocess.DEVNULL)
    os.kill(API_PID, signal.SIGTERM)
    until("no alert without the API", lambda: {"ApiDown"} - alertmanager.alerts())
    stop.set()
    texts = [text for alert in prometheus.firing().values() for text in alert["annotations"].values()]
    assert not [text for text in texts if "error expanding" in text or "<no value>" in text], texts
    print(f"{len(list(files.dashboard_queries()))} queries of dashboards have data; firing at the end:", file=sys.stderr)
    for name, alert in sorted(prometheus.firing().items()):
        print(f"  {name}: {alert['annotations']['summary']}", file=sys.stderr)


alertmanager = Alertmanager()
prometheus = Prometheus(alertmanager)
try:
    check(prometheus, alertmanager)
finally:
    prometheus.stop()
    alertmanager.stop()
