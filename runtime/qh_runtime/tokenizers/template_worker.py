"""Renders chat templates in a process of its own; started by `chat_template`, never imported.

A template comes from a stranger. minijinja has no way to run code, and its fuel ends loops, but one
filter call can still build strings of any size, so the process also lives under hard limits of the
kernel: CPU time (a profiling timer whose default action ends the process, whatever runs), address
space, no file output, no core dump. Losing this process costs one render.

Runs on the standard library and minijinja alone. stdin: one JSON request; stdout: one JSON reply.
Arguments: the folder that holds minijinja.
"""

from __future__ import annotations

import json
import signal
import sys
from datetime import datetime
from typing import Any


class _Refused(Exception):
    """The template called raise_exception: it does not accept this conversation."""


class _TooMuch(Exception):
    """The output grew over its limit."""


def _limit(memory_bytes: int) -> None:
    """Put the process under limits; where the platform has none, the parent's clock remains."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))


def _timer(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _environment(request: dict[str, Any]) -> Any:
    import minijinja

    def raise_exception(message: object) -> str:
        raise _Refused(str(message)[:2000])

    def strftime_now(pattern: object) -> str:
        return now.strftime(str(pattern))

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        # transformers writes plain JSON; the filter of the template engine escapes HTML.
        pair = None if separators is None else (str(separators[0]), str(separators[1]))
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys
        )

    def is_iterable(value: object) -> bool:
        # minijinja counts none as an empty list; templates ask whether tools is iterable.
        return hasattr(value, "__iter__")

    def is_sequence(value: object) -> bool:
        return hasattr(value, "__len__") and hasattr(value, "__getitem__")

    now = datetime.fromisoformat(request["now"])
    return minijinja.Environment(
        fuel=request["fuel"],
        trim_blocks=True,
        lstrip_blocks=True,
        undefined_behavior="lenient",
        auto_escape_callback=lambda name: None,
        filters={"tojson": tojson},
        tests={"iterable": is_iterable, "sequence": is_sequence},
        globals={"raise_exception": raise_exception, "strftime_now": strftime_now},
        debug=False,
    )


def _cause(error: BaseException) -> BaseException:
    """Return the exception that a callback raised, or the error itself."""
    seen = error
    while seen is not None:
        if isinstance(seen, _Refused):
            return seen
        seen = seen.__cause__ or seen.__context__  # type: ignore[assignment]
    return error


def _render(environment: Any, request: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    _timer(request["cpu_s"])
    try:
        text = environment.render_str(request["source"], "chat_template", **job)
    except MemoryError:
        return {"error": "memory", "detail": "out of memory"}
    except BaseException as raised:  # noqa: BLE001 (reported to the parent, whatever it is)
        error = _cause(raised)
        if isinstance(error, _Refused):
            return {"error": "refused", "detail": str(error)}
        kind = getattr(error, "kind", None)
        reason = {"OutOfFuel": "fuel", "SyntaxError": "syntax"}.get(str(kind), "render")
        return {
            "error": reason,
            "detail": str(getattr(error, "message", None) or error).split("\n")[0][:500],
            "line": getattr(error, "line", None),
        }
    if (
        len(text) > request["output_limit"]
        or len(text.encode(errors="surrogatepass")) > request["output_limit"]
    ):
        return {"error": "output", "detail": f"{len(text)} characters"}
    return {"text": text}


def main() -> None:
    """Answer the one request on stdin."""
    sys.path.insert(0, sys.argv[1])
    request = json.loads(sys.stdin.buffer.read())
    environment = _environment(request)
    _limit(request["memory_bytes"])
    for job in request["jobs"]:
        reply = _render(environment, request, job)
        _timer(0)
        line = json.dumps(reply, ensure_ascii=False) + "\n"
        sys.stdout.buffer.write(line.encode("utf-8", "surrogatepass"))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
