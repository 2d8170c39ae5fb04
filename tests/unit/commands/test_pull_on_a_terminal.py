"""A pull on a terminal as a person has it: killed twice, finished, verified, chatted with."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import read_manifest
from qh_runtime.store.part import Part
from tests.conftest import REPOSITORY, SHARED
from tests.support.cli import command, qh_environment, run_qh
from tests.support.figures import Record
from tests.support.hub_stub import HubStub
from tests.support.terminal import TerminalProgram

NAME = "org/model"
MAX_REFETCHED_BYTES = 8 << 20
# Two models that talk: of 3 MB, which every clone has, and of 15 MB.
MODELS = {
    "built-in": REPOSITORY / "assets" / "models" / "qh-toy",
    "prose-7m": SHARED / "models" / "prose-7m",
}
# A narrow window; nothing that is shown may be wider.
COLUMNS = 80


def pull_until(home: Path, hub: HubStub, sent_bytes: int, rate: str) -> TerminalProgram:
    """A pull on a terminal until the hub has sent so much, or to its end."""
    program = TerminalProgram(
        command("pull", NAME, "--limit-rate", rate),
        qh_environment(home, TERM="xterm-256color"),
        size=(COLUMNS, 30),
    )
    program.wait_for("[y/N]")
    # Nothing has scrolled away: the whole card is on the screen.
    assert "licence" in program.text
    program.send("y\n")
    while hub.content_bytes < sent_bytes and program.process.poll() is None:
        program.read(0.01)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_killed_twice_and_chatted_with(
    home: Path, hub: HubStub, record_property: Record, model: str
) -> None:
    if not MODELS[model].is_dir():
        pytest.skip("the project's test data folder (../shared) is not beside this checkout")
    files = {x.name: x.read_bytes() for x in MODELS[model].iterdir() if x.is_file()}
    hub.add(NAME, files)
    size = len(files["model.safetensors"])
    rate = f"{max(0.5, size / 3e6):.2f}"
    layout = StoreLayout(home / "store")
    kept = sent = 0
    for share in (0.3, 0.65):
        program = pull_until(home, hub, int(share * size), rate)
        try:
            program.wait_for("MB/s")
            (line,) = (x for x in program.lines if "MB/s" in x)
            assert line.startswith("model.safetensors  ")
            assert program.process.poll() is None
        finally:
            program.close()
        assert program.process.returncode == -9
        manifest = read_manifest(layout.manifest(NAME))
        assert manifest.state == "pulling"
        # What this run was sent and did not keep, with its look at the header of the weights.
        (key,) = (x.key for x in manifest.files if x.path == "model.safetensors")
        with closing(Part(layout, key, size)) as part:
            refetched = hub.content_bytes - sent - (part.done_bytes - kept)
            kept, sent = part.done_bytes, hub.content_bytes
        record_property("refetched_bytes", refetched)
        assert refetched <= MAX_REFETCHED_BYTES
        # Each of four connections may have had the beginning of a MiB and no more.
        assert kept > 0 or size < MAX_REFETCHED_BYTES
    program = pull_until(home, hub, 1 << 60, rate)
    try:
        assert program.wait() == 0
        assert "going on with the pull of commit" in program.text
        assert f"{NAME} is ready" in program.text
        assert "MB/s" not in program.text
    finally:
        program.close()
    record_property("cases", 2)
    checked = run_qh(home, "verify", NAME)
    assert checked.returncode == 0, checked.stdout
    manifest = read_manifest(layout.manifest(NAME))
    stored = {x.path: (layout.snapshot(NAME) / x.path).read_bytes() for x in manifest.files}
    bad_files = sum(files[path] != content for path, content in stored.items())
    record_property("bad_files", bad_files)
    assert bad_files == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(stored)
    answer = run_qh(home, "run", "-m", NAME, "--max-tokens", "24", "Tell me about a cat.")
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.split()) > 5
    assert run_qh(home, "prune").returncode == 0
    named = {x.sha256 for x in manifest.files}
    left = [
        x
        for x in layout.root.rglob("*")
        if x.is_file() and not x.is_symlink() and x.name.removesuffix(".crc") not in named
        if x.parent != layout.manifests
    ]
    record_property("orphan_bytes", sum(x.stat().st_size for x in left))
    assert sum(x.stat().st_size for x in left) == 0
