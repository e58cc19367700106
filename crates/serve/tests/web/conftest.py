"""A server with the embedded model, one for all tests: `make web-tests` runs them (Chromium, OpenAI's client, schemathesis)."""

import os
import re
import subprocess
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
    yield re.match(r"(http://\S+) draws", line).group(1)
    process.terminate()
    assert process.wait(60) == 0, "the server did not stop as it should"


@pytest.fixture(scope="session")
def screens():
    SCREENS.mkdir(parents=True, exist_ok=True)
    return SCREENS
