"""Chromium under a test's control: pages, expressions, real keys and clicks, other media, pictures and prints.

It speaks the DevTools protocol over two pipes, so that nothing listens on a port.
"""

import base64
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0  # seconds for an answer
KEYS = {
    "Escape": 27,
    "Enter": 13,
    "Tab": 9,
    "ArrowRight": 39,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowDown": 40,
}


def quoted(name: str) -> str:
    """A name as the page's ids have it."""
    return quote(name, safe="")


def pages(pdf: bytes) -> int:
    """How many pages a PDF of Chromium has."""
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def program() -> str:
    """The browser there is; without one the test is skipped."""
    found = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is there")
    return found


class Tab:
    """One page of the browser."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer, self._number = write, read, b"", 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for what it returns."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, f"{method}: {told['error']}"
                return told["result"]
            self.events.append(told)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            self._buffer += os.read(self._read, 2**20)
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Give the window a size in pixels of the page."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)

    def media(self, kind: str = "", **features: str) -> None:
        """Show the page as for a medium, such as ``print``, and with features, such as ``prefers_color_scheme="dark"``."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", media=kind, features=named)

    def open(self, path: Path, place: str = "") -> None:
        """Open a file and wait until it is loaded."""
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri() + place)
        end = time.monotonic() + PATIENCE
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < end, "the page does not load"
            self.events.append(self._next())

    def said(self) -> list[str]:
        """Errors and whatever else the page wrote to its console since it was opened."""
        told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in told]

    def __call__(self, expression: str) -> Any:
        """The value of an expression of JavaScript, which JSON has to have; promises are awaited."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def key(self, name: str) -> None:
        """Press and release a key."""
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            own = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name]}
            self.send("Input.dispatchKeyEvent", type=kind, **own, **(text if kind == "keyDown" else {}))

    def click(self, selector: str) -> None:
        """Click into the middle of the first element that a selector finds."""
        x, y = self(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView({{block: 'center'}});"
            "const box = one.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        self.click_at(x, y)

    def click_at(self, x: float, y: float) -> None:
        """Click at a point of the window, as it is drawn now: a click on a frame before the last finds what was there then."""
        self.drawn()
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.drawn()

    def drawn(self) -> None:
        """Wait until the page is drawn as it is: two frames from now."""
        self("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def printed(self) -> bytes:
        """The page as a PDF of A4."""
        told = self.send("Page.printToPDF", preferCSSPageSize=False, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(told["data"])

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        told = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(told["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A browser with a page, closed in the end."""
    to_browser, from_browser = os.pipe(), os.pipe()
    command = [
        program(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--remote-debugging-pipe",
    ]
    command += [f"--user-data-dir={profile}", "about:blank"]

    # Chromium reads from 3 and writes to 4. The pipes may have these numbers themselves, so they are put out of the way first.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in (to_browser[0], from_browser[1])]

    def plug() -> None:
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    with (profile.parent / "chromium.log").open("wb") as log:
        running = subprocess.Popen(
            command, preexec_fn=plug, close_fds=False, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        for end in ends:
            os.close(end)
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            yield Tab(to_browser[1], from_browser[0])
        finally:
            running.terminate()
            running.wait(PATIENCE)
            os.close(to_browser[1])
            os.close(from_browser[0])
