"""What it means when the system starts no further thread: a refusal, not a bug."""

from __future__ import annotations

from qh_runtime.errors import HardwareError

__all__ = ["thread_refusal"]


def thread_refusal(error: BaseException) -> HardwareError | None:
    """The refusal, where this is how Python says that a thread could not be started."""
    if not isinstance(error, RuntimeError) or "can't start new thread" not in str(error):
        return None
    refusal = HardwareError(
        "threads: expected the system to start one, found the limit of processes and threads "
        "of this user or container reached",
        hint="end other programs, or raise the limit (ulimit -u)",
    )
    refusal.__cause__ = error
    return refusal
