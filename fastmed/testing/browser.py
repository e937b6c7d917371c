"""Headless Chromium, driven by its own protocol over two pipes: for tests and benches of pages."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PATIENCE_S = 60.0


def find() -> str | None:
    """The browser that FASTMED_CHROMIUM names, else the first one on the PATH."""
    return os.environ.get("FASTMED_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page of a headless browser; use it as a context manager.

    requests: addresses that the page asked for, as far as `drain` has seen. complaints: what its
    console said, policy violations among it.
    """

    def __init__(self, program: str, profile: Path, *, width=1440, height=900, scripts=True):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def connect() -> None:  # the browser listens on 3 and answers on 4
            ends = [os.dup(to_browser), os.dup(from_browser)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--no-first-run", "--disable-extensions", "--disable-background-networking"]
        flags += ["--hide-scrollbars", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            [program, *flags, f"--window-size={width},{height}", "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._events: list[str] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        if not scripts:
            self.call("Emulation.setScriptExecutionDisabled", value=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def resize(self, width: int, height: int) -> None:
        """Gives the page another size in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def prefer(self, scheme: str) -> None:
        """Asks for "dark" or "light"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, page: Path) -> float:
        """Opens a file; returns the seconds until its load event."""
        self._events.clear()
        start = time.perf_counter()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self._until(lambda: "Page.loadEventFired" in self._events)
        return time.perf_counter() - start

    def drain(self, seconds: float = 0.3) -> None:
        """Takes in what the page reports for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._receive(left)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is awaited. Raises RuntimeError."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Presses and releases one key, such as ("Tab", 9) or ("Enter", 13)."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Writes what is seen, or the whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **parameters) -> dict[str, Any]:
        """Calls a method of the DevTools protocol. Raises RuntimeError with the browser's word."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        answer: list[dict] = []
        self._until(lambda: bool(answer), answer)
        if "error" in answer[0]:
            raise RuntimeError(f"{method}: {answer[0]['error']['message']}")
        return answer[0].get("result", {})

    def _until(self, done, answer: list[dict] | None = None) -> None:
        end = time.monotonic() + _PATIENCE_S
        while not done():
            left = end - time.monotonic()
            if left <= 0 or self._process.poll() is not None:
                raise RuntimeError("the browser does not answer")
            for message in self._receive(min(left, 1.0)):
                if answer is not None and message.get("id") == self._number:
                    answer.append(message)

    def _receive(self, seconds: float) -> list[dict]:
        """Waits for messages; notes events, returns answers."""
        if not select.select([self._read], [], [], seconds)[0]:
            return []
        self._buffer += os.read(self._read, 1 << 20)
        *whole, self._buffer = self._buffer.split(b"\0")
        answers = []
        for message in map(json.loads, whole):
            if "id" in message:
                answers.append(message)
            else:
                self._note(message["method"], message.get("params", {}))
        return answers

    def _note(self, event: str, facts: dict) -> None:
        self._events.append(event)
        if event == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif event == "Log.entryAdded":
            self.complaints.append(facts["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(facts["exceptionDetails"])[:500])
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(facts["args"])[:500])
