"""The built site, served on loopback, and a headless Chromium to read it with.

Where there is no site or no browser, the tests are skipped with the reason;
`MHA_TUTOR_REQUIRE_BROWSER=1` (set by `.ci/run`) makes them compulsory.
"""

import contextlib
import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
REQUIRED = os.environ.get("MHA_TUTOR_REQUIRE_BROWSER") == "1"
NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
PLACES = ["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"]


def unavailable(reason):
    """Skip, or fail where the tests are compulsory."""
    if REQUIRED:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def chromium():
    """Return the path of a Chromium (or Chrome), `MHA_TUTOR_BROWSER` first, or None."""
    named = os.environ.get("MHA_TUTOR_BROWSER")
    if named:
        return named
    found = (shutil.which(name) for name in NAMES)
    return next((path for path in [*found, *PLACES] if path and Path(path).exists()), None)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that keeps no log."""

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="session")
def site():
    """The folder of the built site."""
    if not (SITE / "index.html").exists():
        unavailable("the site is not built (make book)")
    return SITE


@pytest.fixture(scope="session")
def serve():
    """Serve folders on loopback until the tests are over; call it with one to get its address."""
    with contextlib.ExitStack() as stack:

        def serve(folder):
            handler = functools.partial(Quiet, directory=str(folder))
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield serve


@pytest.fixture(scope="session")
def base(site, serve):
    """The address at which the site is served."""
    return serve(site)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed (make venv)")
    path = chromium()
    if path is None:
        unavailable("no Chromium found (install one, or set MHA_TUTOR_BROWSER to its path)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        )
        yield browser
        browser.close()
