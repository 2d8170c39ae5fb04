"""The command line: parses, dispatches, and turns every outcome into an exit code.

0 done, 1 a bug (traceback in the log), 2 wrong usage, 3 refused with a reason (`QhError`), 130
stopped by the person (an interrupt, or a no to a question), 141 the reader of our output went away.
Importing this module loads neither NumPy nor Textual; each command imports what it needs when it
runs.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from qh_chat import __version__
from qh_chat.commands import COMMANDS
from qh_chat.commands.context import Context
from qh_chat.inert import inert
from qh_chat.logs import set_up_logging
from qh_chat.paths import Paths, app_paths
from qh_chat.thread_limit import thread_refusal
from qh_chat.wrapping import wrapped
from qh_kernels.errors import QhError

__all__ = ["build_parser", "main"]

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

# By name: run as a module, this file is called __main__, which no log handler knows.
log = logging.getLogger("qh_chat.cli")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of twenty options would hide it."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        _say(f"{self.prog}: error: {message}; see {self.prog} --help")
        self.exit(EXIT_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = _Parser(
        prog="qh-chat",
        description="Chat offline with the best model this machine can hold.",
        epilog="Without a command, the app opens.",
        parents=[_shared_options()],
    )
    parser.add_argument("--version", action="version", version=f"qh-chat {__version__}")
    parser.set_defaults(offline=False, command="chat", usage_error=parser.error)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.summary, description=command.description, parents=[_shared_options()]
        )
        sub.set_defaults(command=name, usage_error=sub.error)
        command.add_arguments(sub)
    return parser


def _shared_options() -> _Parser:
    """Options of every command, before or after its name; a new one for each parser.

    Without an own default the option of the command leaves alone what came before its name.
    """
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--offline",
        action="store_true",
        default=argparse.SUPPRESS,
        help="refuse every network connection of this process",
    )
    return shared


def main(argv: Sequence[str] | None = None, on_loaded: Callable[[], None] = lambda: None) -> int:
    """Run one command and return its exit code.

    Where native code still runs in a thread that could not be stopped in time, the process ends
    here instead: tearing the interpreter down under that thread would abort it.

    Args:
        argv: None is sys.argv.
        on_loaded: called once the command's modules are imported, before it does anything.
    """
    try:
        code = _main(argv, on_loaded)
    except KeyboardInterrupt:
        # Between the command's own handling and the end.
        code = EXIT_INTERRUPTED
    if _worker_is_left():
        logging.shutdown()
        os._exit(_flushed(code))
    return code


def _main(argv: Sequence[str] | None, on_loaded: Callable[[], None]) -> int:
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole process
    if sys.stdout is None:
        _say("qh-chat: standard output: expected it open, found it closed; nothing was done")
        return EXIT_REFUSED
    parser = build_parser()
    try:
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            words = args.command == "run" and not any(x.startswith("-") for x in unknown)
            hint = ": put a PROMPT of several words in quotes" if words else ""
            args.usage_error(f"unknown arguments {' '.join(unknown)}{hint}")
    except SystemExit as ended:
        # The help (0) or the usage error (2) is printed.
        return _flushed(ended.code if isinstance(ended.code, int) else EXIT_USAGE)
    paths = app_paths(os.environ)
    try:
        return _flushed(_run(args, paths, on_loaded))
    except BrokenPipeError:
        return _discard_output(EXIT_BROKEN_PIPE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        # Files that cannot be opened name themselves; this came from writing what we print.
        if error.errno not in _UNWRITABLE or error.filename is not None:
            return _bug(error, args.command, paths)
        log.info("output: %s", error)
        _say(f"qh-chat: output cannot be written: {error.strerror}; free some space")
        return _discard_output(EXIT_REFUSED)
    except QhError as error:
        log.info("refused: %s: %s", type(error).__name__, error)
        _say(f"qh-chat: {error}")
        return EXIT_REFUSED
    except MemoryError as error:
        log.error("out of memory in %s", args.command, exc_info=error)
        _say(f"qh-chat: {args.command}: the memory of this machine, or of this process, is used up")
        return EXIT_REFUSED
    except RuntimeError as error:
        refusal = thread_refusal(error)
        if refusal is None:
            return _bug(error, args.command, paths)
        log.error("no thread in %s", args.command, exc_info=error)
        _say(f"qh-chat: {refusal}")
        return EXIT_REFUSED
    except ImportError as error:
        if error.name is None or not error.name.startswith("qh_kernels"):
            return _bug(error, args.command, paths)
        log.error("kernels cannot be loaded", exc_info=error)
        _say(f"qh-chat: kernels cannot be loaded: {error}; install qh-chat again")
        return EXIT_REFUSED
    except Exception as error:  # noqa: BLE001 - the outermost layer: logged, and exit code 1
        return _bug(error, args.command, paths)


def _bug(error: Exception, command: str, paths: Paths) -> int:
    log.error("bug in %s", command, exc_info=error)
    name = type(error).__name__
    _say(f"qh-chat: a bug: {name}: {error}; please report it with the log {paths.places.log}")
    return EXIT_BUG


def _run(
    args: argparse.Namespace,
    paths: Paths,
    on_loaded: Callable[[], None],
) -> int:
    if args.offline:
        from qh_chat.offline import go_offline

        go_offline()
    problem = set_up_logging(paths.places.log, os.environ)
    if problem is not None:
        _say(f"qh-chat: warning: {problem}")
    log.info("qh-chat %s: %s", __version__, args.command)
    command = COMMANDS.get(args.command) or COMMANDS["chat"]
    context = Context(paths=paths, environment=dict(os.environ), usage_error=args.usage_error)
    run = command.load()
    on_loaded()
    try:
        return run(args, context)
    except SystemExit as ended:
        # usage_error of a command that found its own arguments wrong.
        return ended.code if isinstance(ended.code, int) else EXIT_USAGE


def _worker_is_left() -> bool:
    answering = sys.modules.get("qh_chat.commands.answering")
    return answering is not None and bool(answering.worker_is_left())


def _flushed(code: int) -> int:
    """The exit code once everything printed has left this process."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return _discard_output(EXIT_BROKEN_PIPE)
    except OSError as error:
        _say(f"qh-chat: output cannot be written: {error.strerror}; free some space")
        return _discard_output(EXIT_REFUSED)
    return code


def _discard_output(code: int) -> int:
    """The exit code; what is still buffered has no reader and must not fail again at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return code


def _say(text: str) -> None:
    """One sentence on stderr, safe for a terminal, whatever an error quoted."""
    try:
        line = wrapped(inert(text.replace("\n", " ")), sys.stderr)
        print(line.encode("utf-8", "replace").decode("utf-8"), file=sys.stderr, flush=True)
    except (OSError, UnicodeEncodeError, ValueError):
        # Nobody can be told: stderr is closed or takes no such text. The log has it.
        log.debug("stderr is not writable")


if __name__ == "__main__":
    sys.exit(main())
