"""A model in a control group of 2, 1.05, 0.95 and 0.5 times its planned memory.

Never killed where the plan says it fits, refused before loading where it does not. Needs the right
to make a control group (version 1 or 2), which containers rarely give; skipped without.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import command, json_lines, qh_environment, run_qh, write_tiny_model

CONTEXT = 1024
# The random tokenizer makes about five tokens of a word: nearly the whole context is filled.
PROMPT = "word " * 190


class Group:
    """A memory control group of the tests' own."""

    def __init__(self) -> None:
        v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        self.version = 1 if v1.is_dir() else 2
        self.folder = (v1 if self.version == 1 else v2) / f"qh-chat-test-{os.getpid()}"
        try:
            self.folder.mkdir()
            self.limit(1 << 40)
        except OSError as error:
            self.close()
            pytest.skip(f"no right to make a memory control group: {error.strerror}")

    def limit(self, limit_bytes: int) -> None:
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        (self.folder / name).write_text(str(limit_bytes))

    def run(self, home: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run qh-chat inside the group from its first instruction on."""
        line = shlex.join(command(*arguments))
        script = f"echo $$ > {self.folder}/cgroup.procs && exec {line}"
        return subprocess.run(
            ["bash", "-c", script],
            env=qh_environment(home),
            capture_output=True,
            timeout=120,
            check=False,
        )

    def close(self) -> None:
        if self.folder.is_dir():
            self.folder.rmdir()


@pytest.fixture
def group() -> Iterator[Group]:
    made = Group()
    yield made
    made.close()


@pytest.mark.slow
def test_the_plan_decides_and_is_right(group: Group, home: Path, tmp_path: Path) -> None:
    model = write_tiny_model(
        tmp_path / "model",
        hidden_size=512,
        num_hidden_layers=40,
        intermediate_size=512,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=CONTEXT,
    )
    arguments = ["run", "-m", str(model), "--json", "--raw", "--temp", "0"]
    arguments += ["--max-tokens", "4", "--context", str(CONTEXT), "--threads", "1", PROMPT]
    free = run_qh(home, *arguments, timeout_s=120)
    assert free.returncode == 0, free.stderr
    events = json_lines(free.stdout)
    planned = next(x["planned_bytes"] for x in events if x["type"] == "model")
    assert events[-1]["context_used"] > 0.7 * CONTEXT
    for share in (2.0, 1.05):
        group.limit(int(planned * share))
        done = group.run(home, *arguments)
        assert done.returncode == 0, (share, done.stderr)
        assert json_lines(done.stdout)[-1]["type"] == "stats"
    for share in (0.95, 0.5):
        group.limit(int(planned * share))
        done = group.run(home, *arguments)
        assert done.returncode == 3, (share, done.stderr)
        error = json_lines(done.stdout)[-1]
        assert error["error"] == "DoesNotFitError"
        assert error["facts"]["available_bytes"] <= planned * share
        assert not any(x.get("stage") == "pack" for x in json_lines(done.stdout))
