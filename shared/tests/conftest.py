"""A real browser for the tests that look at pages: Chromium, from the system's packages.

Triton's interpreter for the kernels: it is chosen when Triton is first imported. And Hypothesis
with the same examples in every run, on a machine of any speed.
"""

import shutil
from contextlib import suppress
from importlib.resources import files
from importlib.util import find_spec

import pytest
import torch

if not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as patch, suppress(ImportError):
        patch.setenv("TRITON_INTERPRET", "1")
        import triton  # noqa: F401
with suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("repeatable", deadline=None, derandomize=True)
    settings.load_profile("repeatable")

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="session")
def chromium():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None or find_spec("playwright") is None:
        pytest.skip("needs Chromium of the system's packages, and `pip install playwright`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a page by its address.

    An error in its console, an exception, or a request to another host fails the test.
    """
    contexts, wrong = [], []

    def open_page(url, **settings):
        contexts.append(chromium.new_context(**settings))
        page = contexts[-1].new_page()

        def console(message):
            if message.type == "error":
                wrong.append(message.text)

        def request(sent):
            if not sent.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:", "about:")):
                wrong.append(sent.url)

        page.on("console", console)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", request)
        page.goto(str(url))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def accessible():
    """Check a page, or a frame of it, by axe-core; each of its findings is an error."""
    if find_spec("axe_core_python") is None:
        pytest.skip("needs axe-core: pip install axe-core-python")
    script = (files("axe_core_python") / "axe.min.js").read_text()

    def check(page):
        page.evaluate(script)
        found = page.evaluate("axe.run()")["violations"]
        messages = [
            f"{each['id']}: {node['html']}: {node['failureSummary']}"
            for each in found
            for node in each["nodes"]
        ]
        assert not messages, "\n".join(messages)

    return check
