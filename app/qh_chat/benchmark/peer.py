"""llama.cpp as a peer that takes turns with us: a file of the shape, and a process that runs it.

A process of its own, because it may crash, and because its Python need not be ours.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from qh_chat.benchmark import peer_child
from qh_chat.benchmark.gguf_file import write_gguf
from qh_chat.benchmark.measuring import PeerRuns
from qh_chat.benchmark.peer_models import MIXES, metadata_of, tensors_of, token_bytes_of
from qh_runtime.architectures import DecoderSpec
from qh_runtime.errors import SessionError

__all__ = ["PEERS", "PeerProcess", "peer_file", "peer_runs", "peer_version"]

PEERS = ("llama.cpp",)

_INSTALL = (
    "CC=clang CXX=clang++ pip install 'qh-chat[gguf]' (with gcc 12 its AMX code crashes), or name "
    "another Python that has llama-cpp-python with --peer-python"
)
# A crash says nothing on the pipe; the wait for its exit code is short.
_EXIT_WAIT_S = 10.0


def peer_version(python: str) -> str:
    """Return the version of llama-cpp-python that a Python has, and what it is compiled for.

    Raises:
        SessionError: it has none, or does not run.
    """
    code = "import llama_cpp as x; print(x.__version__, x.llama_print_system_info().decode())"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120)
        said = done.stderr.strip().rpartition("\n")[2]
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        said, failed = str(error), True
    if failed:
        raise SessionError(
            f"{python}: expected a Python with llama-cpp-python, found: {said}",
            hint=_INSTALL,
            python=python,
        )
    return done.stdout.strip()


def peer_file(folder: Path, spec: DecoderSpec, mix: str) -> tuple[Path, int]:
    """Write the shape as a GGUF file, unless it is there, and return (path, bytes per token)."""
    tensors = tensors_of(spec, MIXES[mix])
    path = folder / f"{mix}.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        write_gguf(part, metadata_of(spec, spec.max_position_embeddings), tensors)
        part.rename(path)
    return path, token_bytes_of(spec, tensors)


class PeerProcess:
    """A running peer. What it cannot do is a SessionError with the end of what it said."""

    def __init__(self, python: str) -> None:
        source = Path(peer_child.__file__).read_text("utf-8")
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # As text and not as a file: the modules beside the file would hide others from it. In a
        # session of its own, so that an interrupt of ours does not reach it in the middle.
        self._process = subprocess.Popen(
            [python, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return its answer to one request.

        Raises:
            SessionError: it cannot, or it crashed. Facts: exit_code (None while it runs).
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_WAIT_S)
            raise self._failed(f"ended with exit code {process.returncode}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise self._failed(str(reply["error"]))
        return reply

    def _failed(self, found: str) -> SessionError:
        self._said.seek(0)
        return SessionError(
            f"peer: expected an answer, found: {found}",
            hint="measure without --vs, or build the peer with another compiler",
            exit_code=self._process.returncode,
            stderr=self._said.read()[-2000:],
        )

    def close(self) -> None:
        """End it at once: it keeps nothing."""
        self._process.kill()
        with self._process:
            pass
        self._said.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def peer_runs(
    folder: Path, spec: DecoderSpec, mix: str, context_length: int, python: str = sys.executable
) -> Iterator[tuple[PeerProcess, PeerRuns]]:
    """A peer with the shape loaded, in one of its mixes.

    Args:
        folder: where the shape's files are kept between calls.
        context_length: tokens that its cache can hold.

    Raises:
        SessionError: it cannot load the file.
        OSError: the file cannot be written.
    """
    path, token_bytes = peer_file(folder, spec, mix)
    with PeerProcess(python) as process:
        process.ask(do="load", path=str(path), context_length=context_length, threads=1)

        def rate(**request: Any) -> float:
            return float(process.ask(**request)["tokens_per_s"])

        yield (
            process,
            PeerRuns(
                name=f"llama.cpp {mix}",
                pid=process.pid,
                bytes_per_token=token_bytes,
                decode=lambda context, seconds: rate(do="decode", context=context, seconds=seconds),
                prefill=lambda tokens: rate(do="prefill", n_tokens=tokens),
            ),
        )
