"""Fixtures of the server's tests from outside, which `make web-tests` runs (Chromium, OpenAI's client, schemathesis).

One server with the embedded model serves all tests.
"""

import http.client
import http.server
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
SCREENS = ROOT / "target" / "screens"


@pytest.fixture(scope="session")
def server():
    program = os.environ.get("TESSERA", ROOT / "target" / "release" / "tessera")
    log = open(ROOT / "target" / "web-tests.log", "w")
    process = subprocess.Popen(
        [program, "serve", "--bind", "127.0.0.1:0", "--log", "json"], stdout=subprocess.PIPE, stderr=log, text=True
    )
    line = process.stdout.readline()
    yield re.match(r"(http://\S+) is ready", line).group(1)
    process.terminate()
    assert process.wait(60) == 0, "the server did not exit with code 0"


@pytest.fixture(scope="session")
def below_a_path(server):
    """The server behind a proxy, below the path /tessera/."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do(self):
            if not self.path.startswith("/tessera/"):
                return self.send_error(404)
            upstream = http.client.HTTPConnection(server.removeprefix("http://"))
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            upstream.request(self.command, self.path.removeprefix("/tessera"), body, dict(self.headers))
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            while piece := answer.read1():
                self.wfile.write(piece)

        do_GET = do_POST = do
        log_message = lambda *_: None

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_port}/tessera/"
    proxy.shutdown()


@pytest.fixture(scope="session")
def screens():
    SCREENS.mkdir(parents=True, exist_ok=True)
    return SCREENS
