"""Renew the pictures of docs/seeing.md: the page and the demo's report, each by day, by night and
on a phone, and a figure.

It needs Chromium of the system's packages and the report of `nox -s demo`, and runs in the
environment that `nox -s web` makes.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from examples import COCO
from revisit.commands.describe import Describer, demo_model
from revisit.commands.main import main as revisit
from revisit.commands.page import Page
from revisit.commands.page_server import Server

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCENE = COCO / "val2014" / "COCO_val2014_000000000012.jpg"
REPORT = Path(__file__).resolve().parent / "out" / "demo.html"
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 800}},
    "dark": {"viewport": {"width": 1200, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 375, "height": 1180}},
}


def main() -> None:
    from playwright.sync_api import sync_playwright

    if not REPORT.is_file():
        raise SystemExit(f"{REPORT} is not there: `nox -s demo` makes it")
    server = Server("127.0.0.1", 0)
    server.page = Page(Describer(demo_model()), made=True)
    server.server_activate()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, settings in VIEWS.items():
            for what, url in (("page", server.url), ("report", REPORT.as_uri())):
                view = browser.new_context(**settings).new_page()
                view.goto(url)
                view.wait_for_timeout(500)  # colours have changed
                view.screenshot(path=DOCS / f"{what}-{name}.png")
        browser.close()
    server.shutdown()
    figure = str(DOCS / "seeing.png")
    raise SystemExit(revisit(["caption", str(SCENE), "--layers", "all", "--figure", figure]))


if __name__ == "__main__":
    main()
