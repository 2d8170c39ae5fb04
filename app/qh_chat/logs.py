"""The log: one rotating file, because the screens own the terminal. Prompts never go into it."""

from __future__ import annotations

import logging
import logging.handlers
import os
from collections.abc import Mapping
from pathlib import Path

from qh_chat.inert import inert
from qh_runtime.errors import QhError

__all__ = ["LOG_VARIABLE", "LogLevelError", "set_up_logging"]

LOG_VARIABLE = "QH_LOG"
_LEVELS = ("debug", "info", "warning", "error")
# Four files of 1 MiB: months of normal use, and little enough to attach to a report.
_MAX_FILE_BYTES = 1 << 20
_OLD_FILES = 3


class LogLevelError(QhError):
    """QH_LOG holds no known level. Facts: expected, found."""


class _InertFormatter(logging.Formatter):
    """Lines that are safe to show in a terminal, whatever a file name or an error held."""

    def format(self, record: logging.LogRecord) -> str:
        return inert(super().format(record))


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """A log that only its owner may read: paths and model names say much about a person."""

    def _open(self) -> object:  # type: ignore[override]
        stream = super()._open()
        os.chmod(self.baseFilename, 0o600)
        return stream


def set_up_logging(log_file: Path, environment: Mapping[str, str]) -> str | None:
    """Send the log of all our packages to a file from now on.

    Args:
        log_file: its folder is made if needed.
        environment: QH_LOG is debug, info (the default), warning or error.

    Returns:
        None, or why the file cannot be written; then nothing is logged.

    Raises:
        LogLevelError: QH_LOG holds something else.
    """
    level = environment.get(LOG_VARIABLE, "").lower() or "info"
    if level not in _LEVELS:
        raise LogLevelError(
            f"{LOG_VARIABLE}: expected one of {', '.join(_LEVELS)}, found {level!r}",
            hint="change or unset it",
            expected=_LEVELS,
            found=level,
        )
    handler: logging.Handler
    problem = None
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = _PrivateFile(
            log_file, maxBytes=_MAX_FILE_BYTES, backupCount=_OLD_FILES, encoding="utf-8"
        )
    except OSError as error:
        handler = logging.NullHandler()
        problem = f"log {log_file}: cannot be written: {error.strerror}"
    handler.setFormatter(
        _InertFormatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    )
    for name in ("qh_chat", "qh_runtime", "qh_kernels"):
        logger = logging.getLogger(name)
        for old in tuple(logger.handlers):
            logger.removeHandler(old)
            old.close()
        logger.addHandler(handler)
        logger.setLevel(level.upper())
        logger.propagate = False
    # A full disk must not end an answer.
    logging.raiseExceptions = False
    return problem
