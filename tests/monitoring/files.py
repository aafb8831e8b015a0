"""Checks of the files that need no service: metric names, runbook entries, rule tests, dashboards."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/monitoring"
RULES = (MONITORING / "rules/workflow-api.yml").read_text()
DASHBOARDS = sorted((MONITORING / "grafana/dashboards").glob("*.json"))
RUNBOOK = ROOT / "docs/RUNBOOK.md"

# Names that Prometheus adds.
OF_PROMETHEUS = {"up", "ALERTS"}
KEYWORDS = {"by", "without", "on", "ignoring", "and", "or", "unless", "offset", "group_left", "group_right", "bool"}


def panels(dashboard):
    """All panels but rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def dashboard_queries():
    """File, title of the panel, and query of each target."""
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield path.name, panel["title"], target["expr"]


def selectors(query):
    """Each metric of a query with its matchers, such as `up` and `{job="x"}`."""
    query = re.sub(r"\boffset \w+|\b(by|without|on|ignoring|group_left|group_right) *\([^)]*\)", "", query)
    # Texts and ranges are skipped; a name before a bracket is a function.
    for name, matchers, bracket in re.findall(r'"[^"]*"|\[[^\]]*\]|([a-zA-Z_]\w*)\b(\{[^}]*\})?( *\()?', query):
        if name and not bracket and name not in KEYWORDS:
            yield name, matchers


def alert_expressions():
    """Name and expression of each rule, in the order of the file."""
    for rule in re.split(r"\n      - alert: ", RULES)[1:]:
        name = rule.split("\n", 1)[0]
        block = re.search(r"\n        expr: \|\n((?:          .*\n)+)", rule)
        yield name, block[1] if block else re.search(r"\n        expr: (.*)\n", rule)[1]


def documented_metrics():
    """Names in the tables of docs/metrics.md."""
    return set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.M))


def base_name(metric):
    """Name of the histogram to which a series belongs, or the name itself."""
    return re.sub(r"_(bucket|sum|count)$", "", metric)


def anchors(path):
    """Anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document):
    """Links of a document to files and headings that do not exist."""
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not link.startswith("http") and (not target.exists() or anchor and anchor not in anchors(target)):
            yield link


def problems():
    documented = documented_metrics()
    queries = [(f"{file}, {title}", query) for file, title, query in dashboard_queries()]
    queries += [(f"alert {name}", query) for name, query in alert_expressions()]
    for where, query in queries:
        for metric, _ in selectors(query):
            if metric not in OF_PROMETHEUS and metric not in documented and base_name(metric) not in documented:
                yield f"{where}: docs/metrics.md has no metric {metric}"

    for document in (RUNBOOK, ROOT / "docs/metrics.md"):
        for link in broken_links(document):
            yield f"{document.name}: {link} leads nowhere"
    names = [name for name, _ in alert_expressions()]
    links = re.findall(r"runbook_url: (.+)", RULES)
    for name, link in zip(names, links, strict=True):
        expected = f"'{{{{ or $externalLabels.runbook \"docs/RUNBOOK.md\" }}}}#{name.lower()}'"
        if link != expected or name.lower() not in anchors(RUNBOOK):
            yield f"alert {name}: its entry in docs/RUNBOOK.md is missing, or {link} does not lead there"
    alerts = RUNBOOK.read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    for heading in re.findall(r"^### (\w+)$", alerts, re.M):
        if heading not in names:
            yield f"docs/RUNBOOK.md: there is no alert {heading}"

    tests = (ROOT / "tests/monitoring/rules.yml").read_text()
    for name in names:
        checks = re.findall(rf'alertname="{name}", alertstate="firing".*\n.*\n +exp_samples: ?(\[\])?', tests)
        if "" not in checks or "[]" not in checks:
            yield f"alert {name}: tests/monitoring/rules.yml has no test in which it fires, or none in which it does not"

    uids = set()
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        ids = [panel["id"] for panel in dashboard["panels"]]
        if len(set(ids)) != len(ids) or dashboard["uid"] in uids:
            yield f"{path.name}: an id is used twice"
        uids.add(dashboard["uid"])
        for panel in panels(dashboard):
            if not panel.get("description") or not panel["fieldConfig"]["defaults"].get("unit"):
                yield f"{path.name}, {panel['title']}: no description, or no unit"
            for target in panel["targets"]:
                if panel["datasource"]["uid"] != "${datasource}" or target["datasource"]["uid"] != "${datasource}":
                    yield f"{path.name}, {panel['title']}: another data source than the variable"


if __name__ == "__main__":
    found = list(problems())
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if found else 0)
