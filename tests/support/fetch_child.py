"""Downloads in processes that can be killed: forked from one that has imported everything.

`ChildFetcher` talks to this file as a program: one line of JSON for each download, the process id
back, and a line for each that ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from qh_runtime.errors import QhError
from qh_runtime.store.download import fetch_file
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.transfer import FetchOptions, RemoteFile, StopSignal

__all__ = ["Child", "ChildFetcher"]


class Child:
    """One download in a process of its own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.ended = threading.Event()

    def kill(self) -> None:
        """End it as a power cut would; returns when it is gone."""
        if not self.ended.is_set():
            # It may have ended by itself, with the news of it still on the way.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        assert self.ended.wait(10)

    def wait(self) -> int:
        """Its exit status: 0 fetched, 3 a QhError, -9 killed."""
        assert self.ended.wait(30)
        assert self.status is not None
        return self.status


class ChildFetcher:
    """Starts downloads in processes until the `with` block ends."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fetch_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        self._children: dict[int, Child] = {}
        self._started: list[Child] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, root: Path, file: RemoteFile, options: FetchOptions) -> Child:
        """Begin a download."""
        assert self._process.stdin is not None
        job = {"root": str(root), "file": asdict(file), "options": asdict(options)}
        with self._news:
            count = len(self._started)
            print(json.dumps(job), file=self._process.stdin, flush=True)
            assert self._news.wait_for(lambda: len(self._started) > count, 30)
            return self._started[count]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news = json.loads(line)
            with self._news:
                if "started" in news:
                    child = Child(news["started"])
                    self._children[child.pid] = child
                    self._started.append(child)
                    self._news.notify_all()
                else:
                    child = self._children.pop(news["ended"])
                    child.status = news["status"]
                    child.ended.set()


def _fetch(job: dict[str, Any]) -> int:
    options = replace(FetchOptions(), **job["options"])
    try:
        found = fetch_file(
            StoreLayout(Path(job["root"])), RemoteFile(**job["file"]), options, None, StopSignal()
        )
    except QhError as error:
        print(error, file=sys.stderr)
        return 3
    return 0 if found else 1


def _say(**news: int) -> None:
    # One write of less than a pipe's atomic size: children and parent share the pipe.
    os.write(1, (json.dumps(news) + "\n").encode())


def _reap(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    _say(ended=pid, status=os.waitstatus_to_exitcode(status))


def main() -> None:
    """Fork a download for each line of standard input."""
    import filelock  # noqa: F401 - imported once, here, and not in each child

    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_fetch(job))
        _say(started=pid)
        threading.Thread(target=_reap, args=(pid,), daemon=False).start()


if __name__ == "__main__":
    main()
