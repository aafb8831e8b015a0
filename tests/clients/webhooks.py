"""Verifies outgoing webhooks by the official package `standardwebhooks`: every delivery, before, during and after a
rotation of the secret, and with bodies that no parser may write again.

Usage: webhooks.py API_URL     (with standardwebhooks installed)
"""

import http.server
import json
import sys
import threading

from service import Service, until
from standardwebhooks import Webhook, WebhookVerificationError

# Numbers and texts that change when they are read and written again.
INPUT = '{"amount": 1.0, "name": "\\u00e9\\ud83d\\ude00", "large": 123456789012345678901234567890, "s": "a/b"}'


class Receiver(http.server.ThreadingHTTPServer):
    """Remembers what it gets, and answers 204."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.got = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def after(self, count, event_type):
        """The deliveries of that type behind the first ones, as soon as there is one."""
        return until(event_type, lambda: [one for one in self.got[count:] if json.loads(one[0])["type"] == event_type])


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((body, dict(self.headers.items())))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def is_verified(secret, delivery):
    body, headers = delivery
    try:
        verified = Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    assert verified == json.loads(body)
    return True


def main():
    service = Service(sys.argv[1].rstrip("/"))
    receiver = Receiver()
    body = {"name": "verified", "url": receiver.url, "event_types": ["*"], "payload": "full"}
    created = service.call("POST", "/webhooks", body)
    path, secret = f"/webhooks/{created['id']}", created["secret"]

    tested = service.call("POST", f"{path}/test", {})
    assert tested["outcome"] == "success", tested
    ping = receiver.after(0, "webhook.ping")[0]
    assert is_verified(secret, ping)
    assert not is_verified(secret, (ping[0] + b" ", ping[1])), "another body"
    assert not is_verified("whsec_" + "A" * 43 + "=", ping), "another secret"

    # A run that fails at once, since nothing listens there; its input is in the body.
    service.call("POST", "/agents", {"name": "nobody", "url": "http://127.0.0.1:9/", "retry_config": {"max_retries": 1}})
    step = {"id": "s", "type": "agent", "agent_name": "nobody", "input_mapping": {}}
    workflow = service.call("POST", "/workflows", {"name": "fails", "start_step": "s", "steps": {"s": step}})
    execute = f"/workflows/{workflow['id']}/execute"

    def failed():
        before = len(receiver.got)
        service.call("POST", execute, {"input_data": json.loads(INPUT)})
        return receiver.after(before, "run.failed")[0]

    first = failed()
    assert is_verified(secret, first)
    assert json.loads(first[0])["data"]["input"] == json.loads(INPUT), first
    assert b"123456789012345678901234567890" in first[0]

    # In the time of grace both secrets verify; then only the new one does.
    newer = service.call("POST", f"{path}/rotate-secret", {"grace_seconds": 3600})["secret"]
    both = failed()
    assert is_verified(secret, both) and is_verified(newer, both)
    newest = service.call("POST", f"{path}/rotate-secret", {"grace_seconds": 0})["secret"]
    last = failed()
    assert is_verified(newest, last) and not is_verified(newer, last)

    # A redelivery has the same id and the same bytes, with another time and signature.
    page = service.call("GET", f"{path}/deliveries?event_type=run.failed")
    before = len(receiver.got)
    service.call("POST", f"/webhook-deliveries/{page['items'][0]['id']}/redeliver", {})
    again = receiver.after(before, "run.failed")[0]
    assert is_verified(newest, again)
    names = {name.lower(): value for name, value in again[1].items()}
    twins = [one for one in receiver.got[:before] if one[0] == again[0]]
    assert twins and twins[0][1]["webhook-id"] == names["webhook-id"], "the same event"
    service.call("DELETE", path)
    print(f"{len(receiver.got)} deliveries are verified by standardwebhooks")


if __name__ == "__main__":
    main()
