"""Two processes and one store: nothing is lost or fetched twice, and locks die with a process."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.store.disk import prune, remove
from qh_runtime.store.integrity import Verifier
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import read_manifest
from tests.support.cli import command, qh_environment, write_tiny_model
from tests.support.figures import Record
from tests.support.hub_stub import HubStub
from tests.unit.store.published_models import ternary

NAME = "org/model"
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}


@pytest.fixture
def layout(home: Path) -> StoreLayout:
    return StoreLayout(home / "store")


def start(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=qh_environment(home),
    )


def finished(process: subprocess.Popen[bytes]) -> bytes:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out


def content_bytes(hub: HubStub) -> int:
    """Bytes of weights that the hub has sent: ranges that were asked for."""
    total = 0
    for asked in hub.asked:
        if asked.server == "content" and asked.status == 206 and asked.span:
            begin, _, end = asked.span.removeprefix("bytes=").partition("-")
            total += int(end) + 1 - int(begin)
    return total


def test_two_pulls_of_one_model_fetch_it_once(
    home: Path, hub: HubStub, layout: StoreLayout
) -> None:
    files = ternary(**LARGE)
    hub.add(NAME, files)
    both = [start(home, "pull", NAME, "--limit-rate", "8") for _ in range(2)]
    for process in both:
        finished(process)
    manifest = read_manifest(layout.manifest(NAME))
    assert (manifest.state, Verifier(layout).verify(manifest)) == ("ready", ())
    size = len(files["model.safetensors"])
    # Both look at headers and scales first, which is much of a model this small.
    assert content_bytes(hub) <= size + 2 * (1 << 20) < 2 * size
    assert not list(layout.parts.iterdir())


def test_pruning_disturbs_no_pull(
    home: Path, hub: HubStub, layout: StoreLayout, tmp_path: Path
) -> None:
    hub.add(NAME, ternary(**LARGE))
    process = start(home, "pull", NAME, "--limit-rate", "6")
    rounds = 0
    while process.poll() is None:
        prune(layout, home / "cache" / "packed")
        rounds += 1
    finished(process)
    assert rounds > 20
    manifest = read_manifest(layout.manifest(NAME))
    assert (manifest.state, Verifier(layout).verify(manifest)) == ("ready", ())


def test_a_model_that_is_removed_while_it_answers_answers_to_the_end(
    home: Path, layout: StoreLayout, tmp_path: Path, qh: Callable[..., Any]
) -> None:
    model = write_tiny_model(tmp_path / "model", num_hidden_layers=4)
    assert qh("import", str(model), "--name", NAME).code == 0
    words = ("run", "-m", NAME, "--raw", "--temp", "0", "--max-tokens", "300", "--json", "a")
    expected = qh(*words).out.encode()
    process = start(home, *words)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if json.loads(line)["type"] == "token":
            break
    remove(layout, home / "cache" / "packed", NAME)
    prune(layout, home / "cache" / "packed")
    # The reader holds a part of what comes already; communicate would not see it.
    lines += list(process.stdout)
    finished(process)

    def tokens(output: bytes) -> list[int]:
        events = [json.loads(x) for x in output.splitlines()]
        return [x["id"] for x in events if x["type"] == "token"]

    assert tokens(b"".join(lines)) == tokens(expected)
    assert not list(layout.blobs.iterdir())


@pytest.mark.parametrize("loads", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_loads_and_prunes_at_once(
    home: Path,
    layout: StoreLayout,
    tmp_path: Path,
    qh: Callable[..., Any],
    loads: int,
    record_property: Record,
) -> None:
    model = write_tiny_model(tmp_path / "model")
    assert qh("import", str(model), "--name", NAME).code == 0
    stop = threading.Event()
    failures: list[BaseException] = []

    def prune_on() -> None:
        try:
            while not stop.is_set():
                prune(layout, home / "cache" / "packed")
        except BaseException as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    thread = threading.Thread(target=prune_on)
    thread.start()
    try:
        words = ("run", "-m", NAME, "--raw", "--temp", "0", "--max-tokens", "3", "a")
        answers = {qh(*words).out for _ in range(loads)}
    finally:
        stop.set()
        thread.join()
    record_property("cases", loads)
    assert failures == []
    assert len(answers) == 1
    assert answers != {""}


def test_a_lock_of_a_killed_process_is_free_at_once(
    home: Path, hub: HubStub, layout: StoreLayout
) -> None:
    hub.add(NAME, ternary(**LARGE))
    process = start(home, "pull", NAME, "--json", "--limit-rate", "4")
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "transfer" and event["file"]["done_bytes"] > 1 << 19:
            break
    process.kill()
    process.communicate()
    begin = time.monotonic()
    removed = remove(layout, home / "cache" / "packed", NAME)
    assert time.monotonic() - begin < 1.0
    assert {x.kind for x in removed.pieces} >= {"manifest", "blob", "part"}
    prune(layout, home / "cache" / "packed", settled_s=0)
    assert not list(layout.blobs.iterdir())
    assert not list(layout.parts.iterdir())
