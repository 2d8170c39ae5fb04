"""What `pull`, `import` and the offer of `run` have in common: question, signals, exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from qh_chat.commands.fetch_output import FetchOutput, to_stderr
from qh_chat.inert import inert
from qh_chat.model_words import card_lines
from qh_chat.wrapping import wrapped
from qh_runtime.errors import QhError
from qh_runtime.store.manifest import Manifest
from qh_runtime.store.preflight import Preflight
from qh_runtime.store.pull import Confirm, PullEvent
from qh_runtime.store.transfer import StopSignal
from qh_runtime.units import gigabytes

__all__ = ["EXIT_DECLINED", "Interrupts", "asks", "confirmation", "question", "run_fetch"]

# As Ctrl-C at the same question: the person stopped it. Nothing was refused, so it is not 3; what
# was asked for is not done either, so it is not 0, and `qh-chat pull X && ...` does not go on.
EXIT_DECLINED = 130
_SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


class Interrupts:
    """While it is entered, signals ask for the end through a StopSignal.

    Where nothing looks at that (a question, a call of a library), they raise KeyboardInterrupt.
    The handlers of before are back afterwards. Main thread only.

    Attributes:
        stop: is set by a signal.
        exit_code: of the signal that came, 0 for none.
        raising: whether a signal raises.
    """

    def __init__(self, stop: StopSignal) -> None:
        self.stop = stop
        self._before: dict[int, Any] = {}
        self.exit_code = 0
        self.raising = True

    def __enter__(self) -> Interrupts:
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            # nohup and background jobs of a shell have signals ignored: keep that.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is KeyboardInterrupt and self.exit_code != 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = _SIGNALS[signal.Signals(number).name]
        self.stop.stop()
        if self.raising:
            raise KeyboardInterrupt


# Runs with (stop, on_event, confirm) and returns the manifest, None if stopped or declined.
Fetch = Callable[[StopSignal, Callable[[PullEvent], None], Confirm], Manifest | None]


def run_fetch(
    output: FetchOutput, fetch: Fetch, confirm: Confirm, declined: str = "nothing was fetched"
) -> int:
    """Run a pull or an import to its end, and return the exit code of the command.

    Args:
        declined: said where the person answers no.

    Raises:
        QhError: from the fetch; it was shown where it is JSON.
    """
    stop = StopSignal()
    done: Manifest | None = None

    def on_event(event: PullEvent) -> None:
        # From here on the transfers themselves look at the stop.
        interrupts.raising = False
        output.show(event)

    def ask(preflight: Preflight) -> bool:
        interrupts.raising = True
        try:
            return confirm(preflight)
        finally:
            interrupts.raising = False

    with Interrupts(stop) as interrupts:
        try:
            done = fetch(stop, on_event, ask)
        except QhError as error:
            # What was interrupted in the middle of its work may call that a failure.
            if not stop.stopped:
                output.fail(error)
                raise
    if done is not None:
        output.end()
        return 0
    if interrupts.exit_code:
        output.stopped()
        return interrupts.exit_code
    output.end()
    to_stderr(f"qh-chat: {declined}")
    return EXIT_DECLINED


def confirmation(*, ask: bool, force: bool, show_card: bool, verb: str) -> Confirm:
    """Return what decides whether gigabytes move.

    A person who is asked decides. Otherwise it goes on, unless the plan does not fit.

    Args:
        ask: a person is there. force: what does not fit is fetched all the same.
        show_card: print the card. verb: "fetch" or "copy", for card and question.
    """

    def decide(preflight: Preflight) -> bool:
        if preflight.download_bytes == 0:
            return True
        if show_card:
            for line in card_lines(preflight, verb):
                to_stderr(inert(line))
        if ask:
            return question(f"{verb} {gigabytes(preflight.download_bytes)}?")
        if not force:
            preflight.plan.require_fit()
        return True

    return decide


def asks(*, yes: bool, as_json: bool) -> bool:
    """Whether there is a person who can be asked and has not answered already."""
    if yes or as_json or sys.stdin is None:
        return False
    return sys.stdin.isatty() and sys.stderr.isatty()


def question(text: str) -> bool:
    """Ask on standard error; anything but yes is no."""
    # The answer is typed behind a space, which wrapping would take away.
    to_stderr(f"{wrapped(inert(f'{text} [y/N]'), sys.stderr)} ", end="")
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("y", "yes")
