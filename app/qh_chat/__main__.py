"""The start of the `qh-chat` process: ctrl+c is obeyed from here on, without a traceback.

While modules are being imported an interrupt must not become an exception: class bodies and
extension modules turn it into errors of their own. Until a command runs there is nothing to save,
so the process just ends.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]

_EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the command line of sys.argv and return its exit code."""
    # OpenBLAS, which comes with NumPy, starts its threads when it is loaded, and where the system
    # refuses one it sends this process an interrupt. It computes next to nothing here: the kernels
    # have their own threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A shell that starts a command in the background has SIGINT ignored: keep that.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from qh_chat.cli import main as run_command_line

    return run_command_line(on_loaded=_restore)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(_EXIT_INTERRUPTED)


def _restore() -> None:
    """From here on an interrupt is KeyboardInterrupt again, and the command's own affair."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
