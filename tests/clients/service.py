"""What the scripts that call the service have in common."""

import json
import pathlib
import socket
import subprocess
import time
import urllib.request

FOLDER = pathlib.Path(__file__).parent


class Service:
    """The API of the service at this address."""

    def __init__(self, url):
        self.url = url

    def call(self, method, path, body=None):
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/v1{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, json.dumps(body).encode() if body is not None else None) as response:
            return json.load(response)


def until(what, find):
    for _ in range(300):
        found = find()
        if found:
            return found
        time.sleep(0.1)
    raise TimeoutError(what)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    except OSError:
        return False


def start(python, script, port, *arguments):
    """A script of this folder in that Python environment, once it listens at the port."""
    command = [pathlib.Path(python) / "bin/python", FOLDER / script, str(port), *arguments]
    process = subprocess.Popen(command)

    def is_ready():
        assert process.poll() is None, f"{script} has ended"
        return listens(port)

    until(script, is_ready)
    return process
