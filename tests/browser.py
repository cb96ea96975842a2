"""Drives a page in a headless Chromium (Qt WebEngine), as a program of its own: tests run it in a process.

python tests/browser.py PAGE --size 1280 900 [--dark] < STEPS

STEPS is a JSON list, done in order: {"run": JS} evaluates an expression; {"until": JS} waits until one is true;
{"click": SELECTOR}, {"point": SELECTOR} and {"press": KEY} are real mouse and key events; {"shot": FILE} takes a
picture. Written to standard output, as JSON: the value of each step, and all messages of the console.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

TIMEOUT = 60.0  # seconds for the page to load, and for a condition to become true


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("page", type=Path)
    arguments.add_argument("--size", type=int, nargs=2, default=(1280, 900))
    arguments.add_argument("--dark", action="store_true")
    options = arguments.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    scheme = f"--blink-settings=preferredColorScheme={0 if options.dark else 1}"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = f"--no-sandbox --disable-gpu {scheme}"
    browser = Browser(*options.size)
    browser.load(options.page.resolve())
    results = [browser.do(step) for step in json.load(sys.stdin)]
    print(json.dumps({"results": results, "console": browser.console}))
    sys.stdout.flush()
    os._exit(0)  # Qt's own way out complains about the page that is still there


class Browser:
    def __init__(self, width: int, height: int) -> None:
        from PySide6.QtWebEngineCore import QWebEnginePage
        from PySide6.QtWebEngineWidgets import QWebEngineView
        from PySide6.QtWidgets import QApplication

        console: list[str] = []

        class Page(QWebEnginePage):
            def javaScriptConsoleMessage(self, level: Any, message: str, line: int, source: str) -> None:  # noqa: N802
                console.append(f"{message} (line {line})")

        self.console = console
        self.app = QApplication(sys.argv[:1])
        self.view = QWebEngineView()
        self.page = Page(self.view)
        self.view.setPage(self.page)
        self.view.resize(width, height)
        self.view.show()

    def load(self, path: Path) -> None:
        from PySide6.QtCore import QUrl

        done: list[bool] = []
        self.page.loadFinished.connect(done.append)
        self.view.load(QUrl.fromLocalFile(str(path)))
        self.wait(lambda: bool(done))
        if not done[0]:
            raise SystemExit(f"{path}: cannot load")

    def do(self, step: dict[str, Any]) -> Any:
        (kind, what), *_ = step.items()
        return getattr(self, kind)(what)

    def wait(self, condition: Any) -> None:
        end = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"waited {TIMEOUT} s in vain; console: {self.console}")
            self.app.processEvents()
            time.sleep(0.005)

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end)

    def run(self, script: str) -> Any:
        found: list[Any] = []
        self.page.runJavaScript(f"JSON.stringify([{script}])", found.append)
        self.wait(lambda: bool(found))
        return json.loads(found[0])[0] if found[0] else f"failed: {script}"

    def until(self, script: str) -> None:
        end = time.monotonic() + TIMEOUT
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > end:
                raise SystemExit(f"waited {TIMEOUT} s in vain for {script}; console: {self.console}")
            self.pause(0.02)

    def _place(self, selector: str) -> Any:
        from PySide6.QtCore import QPoint

        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center', inline: 'center'}})")
        self.pause(0.1)
        box = f"{element}.getBoundingClientRect()"
        x, y = self.run(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")
        return QPoint(round(x), round(y))

    def click(self, selector: str) -> None:
        from PySide6.QtCore import Qt
        from PySide6.QtTest import QTest

        place = self._place(selector)
        QTest.mouseClick(self.view.focusProxy(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
        self.pause(0.1)

    def point(self, selector: str) -> None:
        from PySide6.QtCore import QEvent, QPointF, Qt
        from PySide6.QtGui import QMouseEvent

        place, target = QPointF(self._place(selector)), self.view.focusProxy()
        nothing = Qt.MouseButton.NoButton
        for at in (place - QPointF(1, 1), place):  # QTest's own move ends at a window that no pointer is over
            keys = Qt.KeyboardModifier.NoModifier
            event = QMouseEvent(QEvent.Type.MouseMove, at, target.mapToGlobal(at), nothing, nothing, keys)
            self.app.sendEvent(target, event)
            self.pause(0.1)

    def press(self, key: str) -> None:
        from PySide6.QtCore import Qt
        from PySide6.QtTest import QTest

        QTest.keyClick(self.view.focusProxy(), getattr(Qt.Key, f"Key_{key}"))
        self.pause(0.1)

    def shot(self, path: str) -> None:
        self.pause(1)  # a picture of the window shows what was last drawn, which lags behind
        if not self.view.grab().save(path):
            raise SystemExit(f"{path}: cannot write the picture")


if __name__ == "__main__":
    main()
