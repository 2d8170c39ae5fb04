"""Start to first token of a whole process, and its memory against the plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from qh_chat.benchmark.rows import Row
from qh_runtime.errors import SessionError

__all__ = ["measure_start"]

# A first sentence: some twenty tokens of a tokenizer as `write_bitnet_folder` makes it.
_PROMPT = "abcd abcd abcd abcd"


def _high_water_bytes(pid: int) -> int:
    """Largest resident set of a running process, 0 where it cannot be asked.

    Not ru_maxrss: on Linux that includes what this process held when it made the other one.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def measure_start(
    shape: str, folder: Path, home: Path, state: str, threads: int, context_length: int
) -> Row:
    """Run one prompt in a process of its own and return a row of kind "load".

    start_to_first_token_s is from the creation of the process to its first token line, rss_bytes
    the largest resident set up to its last token, planned_bytes the total of its plan, and
    rss_over_plan their quotient: below 1 where planned memory was never touched.

    Args:
        state: as shown: "cold" makes the packed weights, "warm" maps those of a start before. Files
            may be in the system's cache either way, as they were just written.
        home: QH_HOME of that process; packed weights are kept below it.
        context_length: small, so that what is planned is also touched.

    Raises:
        SessionError: the process failed. Facts: exit_code, stderr.
    """
    command = [sys.executable, "-m", "qh_chat", "run", "-m", str(folder), "--json", "--offline"]
    command += ["--raw", "--max-tokens", "8", "--temp", "0", "--threads", str(threads)]
    command += ["--context", str(context_length), _PROMPT]
    environment = {**os.environ, "QH_HOME": str(home)}
    # The child must find the same packages, whether installed or run from a source tree.
    environment["PYTHONPATH"] = os.pathsep.join(x for x in sys.path if x)
    begun = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        stderr: list[str] = []
        reader = threading.Thread(target=lambda: stderr.append(process.stderr.read()))  # type: ignore[union-attr]
        reader.start()
        first: float | None = None
        model: dict[str, Any] = {}
        high_bytes = 0
        for line in process.stdout:
            high_bytes = max(high_bytes, _high_water_bytes(process.pid))
            event = json.loads(line)
            if event["type"] == "token" and first is None:
                first = time.perf_counter() - begun
            elif event["type"] == "model":
                model = event
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        reader.join()
    if process.returncode != 0 or first is None:
        said = "".join(stderr).strip().rpartition("\n")[2]
        raise SessionError(
            f"start of {shape}: expected a token and exit code 0, found {process.returncode}: "
            f"{said}",
            exit_code=process.returncode,
            stderr="".join(stderr)[-2000:],
        )
    # Where there is no /proc; ru_maxrss is in bytes on macOS.
    rss = high_bytes or usage.ru_maxrss
    return Row(
        kind="load",
        shape=shape,
        format=str(model["format"]),
        isa=str(model["isa"]),
        threads=threads,
        state=state,
        start_to_first_token_s=first,
        rss_bytes=rss,
        planned_bytes=int(model["planned_bytes"]),
        rss_over_plan=rss / int(model["planned_bytes"]),
    )
