"""A program in a pseudo-terminal, its screen drawn by pyte: what a person would really see."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

__all__ = ["TerminalProgram"]


class TerminalProgram:
    """Runs a command in a terminal of its own.

    Args:
        command: what is run. environment: its whole environment.
        size: columns and rows.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        size: tuple[int, int] = (80, 24),
        folder: Path | None = None,
    ) -> None:
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        self.output = bytearray()
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.process = subprocess.Popen(
            list(command),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
            # Its controlling terminal, so that closing it hangs the program up.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
            close_fds=True,
        )
        os.close(terminal)

    @property
    def lines(self) -> list[str]:
        """The screen, one text a row."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    def send(self, keys: str) -> None:
        """Type."""
        os.write(self._controller, keys.encode())

    def read(self, seconds: float) -> None:
        """Draw what the program writes for a while, or until it ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([self._controller], [], [], left)
            if not ready:
                return
            try:
                data = os.read(self._controller, 65536)
            except OSError:
                return
            if not data:
                return
            self.output += data
            self._stream.feed(data)

    def wait_for(self, seen: str | Callable[[str], bool], seconds: float = 20.0) -> None:
        """Read until the screen shows a text. Raises AssertionError with the screen."""
        check = seen if callable(seen) else lambda text: seen in text
        end = time.monotonic() + seconds
        while not check(self.text):
            if time.monotonic() > end or self.process.poll() is not None:
                self.read(0.1)
                if check(self.text):
                    return
                raise AssertionError(f"the screen never showed {seen!r}:\n{self.text}")
            self.read(0.05)

    def wait(self, seconds: float = 10.0) -> int:
        """Read until the program ends, and return its exit status."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self.read(0.02)
        self.read(0.05)
        return self.process.wait(0.1)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Close the terminal, as when its window is closed."""
        os.close(self._controller)
        self._controller = -1

    def close(self) -> None:
        """End the program and the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)
        if self._controller >= 0:
            os.close(self._controller)
