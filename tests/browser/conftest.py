"""For the tests of this folder: Debian's Chromium, without a window, and the site, served on this machine."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync"]


@pytest.fixture(scope="session")
def browser():
    """Chromium as playwright's Browser."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS])
        yield chromium
        chromium.close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and tells nobody of it."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def home():
    """The address of the served site."""
    if not (SITE / "_static" / "playground" / "made" / "scenes.json").is_file():
        pytest.skip("docs/_build/html is missing, or has no playground: make site")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
