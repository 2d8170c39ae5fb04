"""From a hub to a model that answers; stopped, moved and disturbed on the way."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.checkpoints import open_checkpoint, read_config
from qh_runtime.checkpoints.files import resolve_file
from qh_runtime.errors import (
    CheckpointError,
    StoreError,
)
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.loader import load_model
from qh_runtime.options import LoadOptions, SamplingParams
from qh_runtime.store.entry import ModelEntry
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.pull import (
    Checked,
    Checking,
    Finished,
    Listed,
    PullEvent,
    Transfer,
)
from qh_runtime.store.relist import remote_files
from qh_runtime.store.snapshot import wrong_links
from qh_runtime.store.transfer import StopSignal
from tests.support.hub_stub import HubStub
from tests.unit.store.published_models import INDEX, sharded, ternary
from tests.unit.store.puller import FAST, NAME, Puller, large_requests


def greedy(folder: Path, cache: Path, profile: HardwareProfile) -> list[str]:
    """The events of a short answer, as text."""
    options = LoadOptions(context_length=64, threads=1)
    session = load_model(ModelEntry("m", folder, "store"), options, profile, cache)
    try:
        params = SamplingParams(temperature=0, max_tokens=4, seed=1)
        return [repr(getattr(x, "text", "")) for x in session.complete("The fox", params)]
    finally:
        session.close()


def test_a_pulled_model_answers_as_the_published_one(
    hub: HubStub, puller: Puller, tmp_path: Path, profile: HardwareProfile
) -> None:
    files = ternary()
    hub.add(NAME, {**files, "LICENSE": b"free", "README.md": b"# x", "modeling_x.py": b"boom"})
    manifest = puller()
    assert manifest is not None
    assert puller.kinds() == ["Listed", "Checking", "Checked", "Transfer", "Linked", "Finished"]
    assert manifest == puller.manifest()
    assert (manifest.state, manifest.origin, manifest.name) == ("ready", "hub", NAME)
    assert manifest.commit == hub.repos[NAME].branches["main"]
    assert (manifest.license, manifest.gated, manifest.revision) == ("apache-2.0", False, "")
    assert (manifest.model_type, manifest.format) == ("bitnet", "ternary")
    assert manifest.packed_bytes > 0
    assert manifest.pulled_at.endswith("+00:00")
    assert puller.content() == {**files, "LICENSE": b"free"}
    assert set(hub.fetched(NAME)) == {*files, "LICENSE"}
    finished = puller.events[-1]
    assert finished == Finished(manifest, up_to_date=False)
    last = [x for x in puller.events if isinstance(x, Transfer)][-1]
    assert (last.done_bytes, last.total_bytes, last.left_s) == (*[manifest.total_bytes] * 2, 0.0)
    assert last.fetched_bytes == len(files["model.safetensors"])

    folder = puller.layout.snapshot(NAME)
    source = open_checkpoint(folder)
    assert source.info("model.norm.weight").shape == (64,)
    assert read_config(folder).model["model_type"] == "bitnet"
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, content in files.items():
        (plain / name).write_bytes(content)
    answer = greedy(folder, tmp_path / "cache", profile)
    assert len(answer) >= 2
    assert answer == greedy(plain, tmp_path / "cache2", profile)


def test_links_are_relative_and_the_reader_follows_them_into_the_store_alone(
    hub: HubStub, puller: Puller, tmp_path: Path
) -> None:
    hub.add(NAME, ternary())
    manifest = puller()
    assert manifest is not None
    folder = puller.layout.snapshot(NAME)
    for file in manifest.files:
        assert os.readlink(folder / file.path) == f"../../blobs/{file.sha256}"
        assert resolve_file(folder, file.path) == puller.layout.blob(file.sha256).resolve()
        assert puller.layout.blob(file.sha256).stat().st_mode & 0o222 == 0
    moved = StoreLayout(puller.layout.root.with_name("moved"))
    puller.layout.root.rename(moved.root)
    folder = moved.snapshot(NAME)
    assert open_checkpoint(folder).names()
    for target in (tmp_path / "secret", moved.root / "manifests" / "org--model.json"):
        if not target.exists():
            target.write_text("{}")
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(target)
        with pytest.raises(CheckpointError) as caught:
            resolve_file(folder, "config.json")
        assert caught.value.facts["rule"] == "link"


def test_shards(hub: HubStub, puller: Puller) -> None:
    files = sharded()
    hub.add(NAME, files)
    manifest = puller()
    assert manifest is not None
    assert puller.content() == files
    assert len(open_checkpoint(puller.layout.snapshot(NAME)).names()) > 10
    # Small files come first, so that a broken repository is noticed early.
    moved = [x.file.path for x in puller.events if isinstance(x, Transfer)]
    assert list(dict.fromkeys(moved)) == [x for x in sorted(files) if x.startswith("model-")]
    assert INDEX in [x.file.path for x in puller.events if isinstance(x, Checking)]


def test_a_folder_of_a_repository(hub: HubStub, puller: Puller) -> None:
    files = ternary()
    side = {k: v for k, v in files.items() if k.startswith("tokenizer")}
    inside = {f"small/{k}": v for k, v in files.items() if k not in side}
    hub.add(NAME, {**side, **inside, "small/run.py": b"boom"})
    manifest = puller(artifact="small")
    assert manifest is not None
    assert (manifest.name, manifest.artifact) == (f"{NAME}:small", "small")
    assert puller.content(f"{NAME}:small") == files
    where = remote_files(manifest, FAST, endpoint=hub.endpoint)
    assert where is not None
    assert {k: x.path for k, x in where.items()} == {
        k: k if k in side else f"small/{k}" for k in files
    }


def test_weights_that_the_hub_keeps_with_the_small_files(hub: HubStub, puller: Puller) -> None:
    files = sharded()
    hub.add(NAME, files, lfs=False)
    stop = StopSignal()

    def at(event: PullEvent) -> None:
        if isinstance(event, Transfer) and event.file.state == "done":
            stop.stop()

    assert puller(stop=stop, at=at) is None
    unfinished = puller.manifest()
    assert unfinished is not None
    shards = sorted(x for x in files if x.startswith("model-"))
    assert [x.path for x in unfinished.files if not x.sha256] == shards[1:]
    manifest = puller()
    assert manifest is not None
    assert {x.key[:4] for x in manifest.files} == {"git-"}
    assert puller.content() == files
    hub.asked.clear()
    assert puller() == manifest
    assert len(hub.asked) == 1


def test_a_branch_has_a_name_of_its_own(hub: HubStub, puller: Puller) -> None:
    repo = hub.add(NAME, ternary())
    other = repo.push({**ternary(), "LICENSE": b"x"}, "dev")
    first, second = puller(), puller(revision="dev")
    assert first is not None
    assert second is not None
    assert (second.name, second.revision, second.commit) == (f"{NAME}@dev", "dev", other)
    assert large_requests(hub) == 0  # the weights are the same blob
    assert puller.manifest() == first


# Nothing to do, or no.


def test_what_is_up_to_date_costs_one_request(hub: HubStub, puller: Puller) -> None:
    hub.add(NAME, ternary())
    first = puller()
    second = puller()
    assert second == first
    assert len(hub.asked) == 1
    assert puller.kinds() == ["Listed", "Finished"]
    assert puller.events[-1] == Finished(first, up_to_date=True)  # type: ignore[arg-type]


def test_missing_links_and_blobs_are_put_right(hub: HubStub, puller: Puller) -> None:
    files = ternary()
    hub.add(NAME, files)
    manifest = puller()
    assert manifest is not None
    link = puller.layout.snapshot(NAME) / "config.json"
    link.unlink()
    link.symlink_to("/etc/passwd")
    puller()
    assert puller.kinds() == ["Listed", "Linked", "Finished"]
    assert wrong_links(puller.layout, manifest) == ()
    weights = next(x for x in manifest.files if x.path == "model.safetensors")
    puller.layout.blob(weights.sha256).unlink()
    again = puller()
    assert again is not None
    assert puller.content() == files
    assert hub.fetched(NAME) == ["model.safetensors"]


def test_no_is_no(hub: HubStub, puller: Puller) -> None:
    hub.add(NAME, ternary())
    asked: list[Any] = []
    assert puller(confirm=lambda x: bool(asked.append(x))) is None
    assert asked == [x.preflight for x in puller.events if isinstance(x, Checked)]
    assert puller.kinds() == ["Listed", "Checking", "Checked"]
    assert puller.manifest() is None
    assert not puller.layout.snapshot(NAME).exists()
    assert puller(confirm=lambda _: True) is not None


# Interruptions.


def interrupted(hub: HubStub, puller: Puller, files: dict[str, bytes]) -> int:
    """Number of events of an undisturbed pull, in a store of its own."""
    hub.add(NAME, files)
    other = Puller(hub, StoreLayout(puller.layout.root.parent / "other"), puller.profile)
    assert other() is not None
    return len(other.events)


class Interruption(BaseException):
    """Ends a pull as ctrl+c does."""


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("stop", 2),
        ("raise", 3),
        pytest.param("stop", 1, marks=pytest.mark.slow),
        pytest.param("raise", 1, marks=pytest.mark.slow),
    ],
)
def test_interrupted_at_any_event_it_goes_on_later(
    kind: str, step: int, hub: HubStub, puller: Puller
) -> None:
    files = sharded(2)
    count = interrupted(hub, puller, files)
    assert count > 12
    unfinished = 0
    for number in range(0, count - 1, step):
        fresh = Puller(
            hub, StoreLayout(puller.layout.root.parent / f"{kind}{number}"), puller.profile
        )
        stop = StopSignal()

        def at(_: PullEvent, one: Puller = fresh, n: int = number, s: StopSignal = stop) -> None:
            if len(one.events) == n + 1:
                if kind == "raise":
                    raise Interruption
                s.stop()

        try:
            first = fresh(at=at, stop=stop)
        except Interruption:
            first = None
        manifest = fresh.manifest()
        if first is None:
            assert manifest is None or manifest.state == "pulling" or kind == "raise"
            unfinished += manifest is not None and manifest.state == "pulling"
        assert fresh() is not None
        assert fresh.content() == files
        assert list(fresh.layout.parts.iterdir()) == []
        assert list(fresh.layout.root.rglob("*.tmp*")) == []
    assert unfinished >= 1


def stop_at_first_weights(stop: StopSignal) -> Callable[[PullEvent], None]:
    """Stops while the first shard moves; it may still arrive, the next one does not."""

    def at(event: PullEvent) -> None:
        if isinstance(event, Transfer):
            stop.stop()

    return at


def test_an_unfinished_pull_keeps_its_commit_when_the_branch_moves(
    hub: HubStub, puller: Puller
) -> None:
    old, new = sharded(), {**sharded(), "LICENSE": b"new"}
    new["config.json"] = new["config.json"].replace(b'"vocab_size": 400', b'"vocab_size":  400')
    repo = hub.add(NAME, old)
    stop = StopSignal()
    assert puller(stop=stop, at=stop_at_first_weights(stop)) is None
    unfinished = puller.manifest()
    assert unfinished is not None
    assert unfinished.state == "pulling"
    moved = repo.push(new)
    manifest = puller()
    assert manifest is not None
    assert manifest.commit == unfinished.commit != moved
    assert puller.content() == old
    assert puller.events[0] == dataclasses.replace(
        puller.events[0],
        continues=True,
        replaces="",  # type: ignore[arg-type]
    )
    # It is ready now, so the next pull takes what is new.
    newer = puller()
    assert newer is not None
    assert newer.commit == moved
    assert puller.content() == new


def test_an_unfinished_pull_can_be_given_up_for_the_newest(hub: HubStub, puller: Puller) -> None:
    old, new = sharded(), {**sharded(), "LICENSE": b"new"}
    repo = hub.add(NAME, old)
    stop = StopSignal()
    assert puller(stop=stop, at=stop_at_first_weights(stop)) is None
    moved = repo.push(new)
    manifest = puller(newest=True)
    assert manifest is not None
    assert manifest.commit == moved
    assert puller.content() == new


def test_a_commit_that_the_hub_has_forgotten(hub: HubStub, puller: Puller) -> None:
    repo = hub.add(NAME, sharded())
    stop = StopSignal()
    assert puller(stop=stop, at=stop_at_first_weights(stop)) is None
    first = repo.branches["main"]
    repo.push(sharded())
    del repo.commits[first]
    with pytest.raises(StoreError) as caught:
        puller()
    assert caught.value.facts["rule"] == "commit gone"
    assert "--newest" in str(caught.value)
    assert puller(newest=True) is not None


def test_a_newer_commit_replaces_the_model_as_a_whole(
    hub: HubStub, puller: Puller, tmp_path: Path, profile: HardwareProfile
) -> None:
    old = sharded()
    shards = [x for x in old if x.endswith(".safetensors")]
    changed = {x: old[x][:-1] + bytes([old[x][-1] ^ 1]) for x in shards[1:]}
    new = {**old, **changed, "NOTICE": b"new"}
    repo = hub.add(NAME, old)
    first = puller()
    assert first is not None
    moved = repo.push(new)
    stop = StopSignal()
    assert puller(stop=stop, at=stop_at_first_weights(stop)) is None
    listed = puller.events[0]
    assert isinstance(listed, Listed)
    assert (listed.continues, listed.replaces) == (False, first.commit)
    assert puller.manifest() == first
    assert wrong_links(puller.layout, first) == ()
    assert puller.content() == old
    greedy(puller.layout.snapshot(NAME), tmp_path / "cache", profile)
    second = puller()
    assert second is not None
    assert second.commit == moved
    assert puller.content() == new
    # Nothing that had not changed was fetched.
    assert set(hub.fetched(NAME)) <= {*changed, "NOTICE"}


def test_blobs_that_vanish_meanwhile_are_fetched_again(hub: HubStub, puller: Puller) -> None:
    files = ternary()
    hub.add(NAME, files)
    left = [1]

    def remove(event: PullEvent) -> None:
        if isinstance(event, Transfer) and event.file.state == "done" and left[0]:
            left[0] -= 1
            for blob in puller.layout.blobs.iterdir():
                blob.unlink()

    assert puller(at=remove) is not None
    assert puller.content() == files
    left[0] = 99
    puller.layout.manifest(NAME).unlink()
    for blob in puller.layout.blobs.iterdir():
        blob.unlink()
    with pytest.raises(StoreError) as caught:
        puller(at=remove)
    assert "again" in str(caught.value)
