"""Signatures of webhooks by the libraries of their providers, for the tests of `src/inbound`:

    pip install stripe slack_sdk standardwebhooks svix cryptography
    python tests/clients/inbound_vectors.py > src/inbound/vectors.json

The libraries sign, and verify what they have signed, so a vector is what a receiver with the library accepts. GitHub has no
library in Python: its rule is HMAC-SHA-256 over the body, the first vector is the one that GitHub documents, and
`github_vectors.mjs` holds them against GitHub's library in JavaScript. No
library in Python signs with ed25519 (`v1a`); there `cryptography` signs the text of the specification. All keys and
times are fixed, so the output is always the same.
"""

import base64
import datetime
import hashlib
import hmac
import json
from unittest import mock

import slack_sdk.signature
import standardwebhooks
import stripe
import svix
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

AT = 1_764_450_000
BODIES = {
    "plain": b'{"id":"evt_1","event_id":"Ev1"}',
    "spaces": b'{ "id" :  "evt_1",\r\n\t"event_id":"Ev1" }',
    "float": b'{"id":"evt_1","amount":1.0,"n":123456789012345678901234567890}',
    "escapes": b'{"id":"evt_1","text":"\\u00e9\\u20ac \\ud83d\\ude00 \\/"}',
    "utf8": '{"id":"evt_1","text":"é€ 😀"}'.encode(),
    "newline": b'{"id":"evt_1"}\n',
    "bom": b'\xef\xbb\xbf{"id":"evt_1"}',
    "empty": b"",
    "form": b"token=x&payload=%7B%22a%22%3A1.0%7D&text=a+b",
    "binary": bytes(range(256)),
}
SECRETS = {
    "github": "It's a Secret to Everybody",
    "stripe": "whsec_5WbX5kEWLlfzsGNjH64I8lOOqUB6e8FH",
    "slack": "8f742231b10e8888abcd99yyyzzz85a5",
    "standard": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}
vectors = []


def add(preset, name, secret, body, headers):
    body = base64.b64encode(body).decode()
    vectors.append({"preset": preset, "name": name, "secret": secret, "body": body, "headers": headers})


def github(name, body):
    digest = hmac.new(SECRETS["github"].encode(), body, hashlib.sha256).hexdigest()
    add("github", name, SECRETS["github"], body, {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Delivery": "d-1"})


def stripe_vector(name, body):
    secret, signature = SECRETS["stripe"], stripe.WebhookSignature._compute_signature
    text = body.decode()
    header = f"t={AT},v1={signature(f'{AT}.{text}', secret)},v0={'0' * 64}"
    with mock.patch("stripe._webhook.time.time", lambda: AT):
        assert stripe.WebhookSignature.verify_header(text, header, secret, tolerance=300)
    add("stripe", name, secret, body, {"Stripe-Signature": header})


def slack(name, body):
    verifier = slack_sdk.signature.SignatureVerifier(SECRETS["slack"], mock.Mock(now=lambda: AT))
    signature = verifier.generate_signature(timestamp=str(AT), body=body)
    assert verifier.is_valid(body, str(AT), signature)
    headers = {"X-Slack-Signature": signature, "X-Slack-Request-Timestamp": str(AT)}
    add("slack", name, SECRETS["slack"], body, headers)


class Then(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(AT, tz)


def standard(name, body, library, prefix):
    text, at = body.decode(), datetime.datetime.fromtimestamp(AT, datetime.UTC)
    webhook = library(SECRETS["standard"])
    headers = {f"{prefix}-id": "msg_1", f"{prefix}-timestamp": str(AT)}
    headers[f"{prefix}-signature"] = webhook.sign("msg_1", at, text)
    # Svix's library has the other one inside.
    with mock.patch("standardwebhooks.webhooks.datetime", Then):
        try:
            webhook.verify(text, headers)
        except json.JSONDecodeError:
            pass  # The signature is accepted, and the library then reads JSON.
    add("standard", f"{name} {prefix}", SECRETS["standard"], body, headers)


def asymmetric(name, body):
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signature = base64.b64encode(key.sign(b"msg_1." + str(AT).encode() + b"." + body)).decode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(AT), "webhook-signature": f"v1a,{signature}"}
    add("standard", f"{name} ed25519", "whpk_" + base64.b64encode(public).decode(), body, headers)


github("documented", b"Hello, World!")
documented = vectors[0]["headers"]["X-Hub-Signature-256"]
assert documented == "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
for name, body in BODIES.items():
    github(name, body)
    asymmetric(name, body)
    if name != "binary":  # These libraries take text.
        slack(name, body)
        stripe_vector(name, body)
        standard(name, body, standardwebhooks.Webhook, "webhook")
        standard(name, body, svix.Webhook, "svix")
print(json.dumps({"at": AT, "vectors": vectors}, indent=1))
