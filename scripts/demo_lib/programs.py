"""The three programs as processes."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path


class Failed(Exception):
    """The demo cannot continue; the text has the reason."""


class Program:
    """One program, with its log in a file. It ends with this process, even when that is killed."""

    def __init__(self, name: str, path: Path, env: dict[str, str], log: Path):
        self.name, self.path, self.env, self.log = name, path, env, log
        self.process: subprocess.Popen | None = None
        self.stopping = False

    def start(self) -> None:
        self.stopping = False
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.path],
                env=os.environ | self.env,
                stdin=subprocess.DEVNULL,
                stdout=self.stdout() or log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends its programs
                preexec_fn=die_with_parent,
            )

    def stdout(self) -> int | None:
        return None

    def kill(self) -> None:
        """SIGKILL: no farewell of any kind."""
        self.stopping = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        self.stopping = True
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.kill()

    def check(self) -> None:
        """Fails if the program ended without being stopped."""
        if self.process is None or self.stopping:
            return
        code = self.process.poll()
        if code is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-8:]
            told = "".join(f"\n  | {line}" for line in lines)
            raise Failed(f"{self.name} ended by itself (exit code {code}); the end of {self.log}:{told}")


class OrderApplication(Program):
    """Reports every save in a line of JSON."""

    def __init__(self, *args, on_save: Callable[[int], None]):
        super().__init__(*args)
        self.on_save = on_save
        self.saves = 0
        self.messages = 0
        self.killed_once = False
        self.done = threading.Event()

    def start(self) -> None:
        super().start()
        threading.Thread(target=self._read, args=[self.process.stdout], daemon=True).start()

    def stdout(self) -> int:
        return subprocess.PIPE

    def _read(self, lines) -> None:
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                continue  # cut off by the kill
            if "started" in told:
                self.saves = told["saves"]
            elif "saved" in told:
                self.saves += 1
                self.messages += told["messages"]
                self.on_save(self.saves)
            elif "done" in told:
                self.done.set()

    def check(self) -> None:
        if not self.done.is_set():
            super().check()


def die_with_parent() -> None:
    """Runs in the child before the program: Linux kills it when the demo dies."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def services(root: Path, *arguments: str) -> None:
    """Runs scripts/services; its output is shown only if it fails."""
    command = [root / "scripts" / "services", *arguments]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise Failed(f"scripts/services {' '.join(arguments)} failed:\n{done.stdout}")
