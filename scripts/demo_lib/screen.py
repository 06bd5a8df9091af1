"""The output of the demo: events as lines, and below them one line that is kept up to date."""

import sys
import threading
import time
from collections.abc import Callable

EVERY_ON_A_TERMINAL = 0.2
EVERY_ELSEWHERE = 3.0


class Screen:
    def __init__(self, status: Callable[[], str]):
        self.status = status
        self.began = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the updates, leaving the last one to be seen."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._update()
            if self.terminal:
                print(flush=True)

    def say(self, text: str) -> None:
        with self._lock:
            clear = "\r\x1b[K" if self.terminal else ""
            print(f"{clear}{self._clock()}  {text}", flush=True)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_ON_A_TERMINAL if self.terminal else EVERY_ELSEWHERE):
            self._update()

    def _update(self) -> None:
        with self._lock:
            start, end = ("\r\x1b[K", "") if self.terminal else ("", "\n")
            print(f"{start}{self._clock()}    {self.status()}", end=end, flush=True)

    def _clock(self) -> str:
        return f"{time.monotonic() - self.began:6.1f} s"
