"""Pages in a real browser: Debian's Chromium, headless, with its software renderer."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("SUREFOOT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
PATIENCE = 60_000  # milliseconds; a busy machine draws slowly
NO_WEBGL = """
const real = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
  return kind.startsWith("webgl") ? null : real.call(this, kind, ...more);
};
"""


@dataclass
class Visit:
    """An open page, and what it did that it must not do."""

    page: Any
    faults: list[str]

    def show(self, plot: str) -> Any:
        """The plot's element, scrolled into view and drawn."""
        element = self.page.locator(f"#{plot}")
        element.scroll_into_view_if_needed()
        element.locator("svg, canvas").first.wait_for(state="attached")
        return element

    def ask(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def eye(self) -> list[float]:
        """Where the first surface is seen from."""
        found: list[float] = self.ask(
            "Object.values(document.getElementById('model-1-surface').layout.scene.camera.eye)"
        )
        return found


def open_page(browser: Any, path: Path, width: int = 800, before: str = "") -> Visit:
    """Open a page; nothing but its own file is handed out."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    context.set_default_timeout(PATIENCE)
    found = Visit(context.new_page(), [])

    def guard(route: Any) -> None:
        if route.request.url.partition("#")[0] == path.as_uri():
            route.continue_()
        else:
            found.faults.append(f"asked for {route.request.url}")
            route.abort()

    def said(message: Any) -> None:
        # the software renderer's remarks on its own speed are warnings
        if message.type == "error":
            found.faults.append(message.text)

    context.route("**/*", guard)
    found.page.on("console", said)
    found.page.on("pageerror", lambda error: found.faults.append(str(error)))
    if before:
        found.page.add_init_script(before)
    found.page.goto(path.as_uri())
    return found
