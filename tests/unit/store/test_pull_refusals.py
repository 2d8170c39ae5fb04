"""Pulls that are refused, and what a hostile hub leaves behind: nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.errors import (
    CheckpointError,
    DownloadError,
    IntegrityError,
    ModelNotFoundError,
    QhError,
    StoreError,
)
from qh_runtime.store.manifest import write_manifest
from qh_runtime.store.pull import (
    Checked,
    Linked,
    PullEvent,
)
from qh_runtime.store.relist import remote_files
from qh_runtime.store.transfer import StopSignal
from tests.support.hub_stub import TOKEN, HubStub
from tests.unit.store.hostile_names import NAMES
from tests.unit.store.published_models import dense, ternary
from tests.unit.store.puller import FAST, NAME, Puller, large_requests


def test_a_gated_model_needs_the_token_and_only_the_hub_sees_it(
    hub: HubStub, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, ternary(), gated="auto")
    with pytest.raises(StoreError) as caught:
        puller()
    assert caught.value.facts["rule"] == "gated"
    assert puller.manifest() is None
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    manifest = puller()
    assert manifest is not None
    assert manifest.gated
    sent = {(x.server, x.authorization) for x in hub.asked}
    assert sent == {("hub", f"Bearer {TOKEN}"), ("content", None)}
    assert TOKEN not in puller.layout.manifest(NAME).read_text()


def test_terms_that_are_withdrawn_meanwhile(hub: HubStub, puller: Puller) -> None:
    repo = hub.add(NAME, ternary(), gated="auto")

    def withdraw(event: PullEvent) -> None:
        if isinstance(event, Checked):
            repo.gated = "manual"
            hub.failures = [403]

    with pytest.raises(StoreError) as caught:
        puller(at=withdraw, options=dataclasses.replace(FAST, token=TOKEN))
    assert caught.value.facts["rule"] == "gated"


def test_offline_and_no_such_repository(
    hub: HubStub, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with pytest.raises(ModelNotFoundError):
        puller("org/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError) as caught:
        puller()
    assert caught.value.facts["rule"] == "offline"
    assert not puller.layout.root.exists()


@pytest.mark.parametrize(
    "fields",
    [{"revision": "refs/pr/1"}, {"revision": "../x"}, {"artifact": "a/b"}, {"artifact": ".."},
     {"artifact": "x:y"}, {"revision": "x y"}],
)  # fmt: skip
def test_names_that_the_store_cannot_give(
    fields: dict[str, str], hub: HubStub, puller: Puller
) -> None:
    hub.add(NAME, ternary())
    with pytest.raises(StoreError):
        puller(**fields)
    assert hub.asked == []


def test_an_imported_model_is_not_replaced(hub: HubStub, puller: Puller) -> None:
    hub.add(NAME, ternary())
    manifest = puller()
    assert manifest is not None
    imported = dataclasses.replace(manifest, origin="import", repo="", commit="", revision="")
    write_manifest(puller.layout, imported)
    with pytest.raises(StoreError):
        puller()
    assert puller.manifest() == imported
    with pytest.raises(StoreError):
        remote_files(imported, FAST, endpoint=hub.endpoint)


def test_a_damaged_manifest_is_written_again(hub: HubStub, puller: Puller) -> None:
    hub.add(NAME, ternary())
    assert puller() is not None
    puller.layout.manifest(NAME).write_text('{"version": 1, "name":')
    with pytest.raises(IntegrityError):
        puller.manifest()
    manifest = puller()
    assert manifest is not None
    assert puller.manifest() == manifest


def test_a_stop_while_the_hub_is_asked(hub: HubStub, puller: Puller) -> None:
    hub.add(NAME, ternary())
    hub.failures = [503]
    stop = StopSignal()
    stop.stop()
    assert puller(stop=stop) is None
    assert puller.events == []


def test_the_quota_is_asked(hub: HubStub, puller: Puller) -> None:
    hub.add(NAME, ternary())
    with pytest.raises(StoreError) as caught:
        puller(quota_bytes=1000)
    assert caught.value.facts["rule"] == "quota"
    assert puller.manifest() is None


@pytest.mark.parametrize("folder", ["manifests", "snapshots", "blobs", "locks"])
def test_a_disk_that_refuses(folder: str, hub: HubStub, puller: Puller) -> None:
    hub.add(NAME, ternary())
    puller.layout.root.mkdir(parents=True)
    (puller.layout.root / folder).write_text("a file where a folder belongs")
    with pytest.raises(StoreError) as caught:
        puller()
    assert str(caught.value).isprintable()
    (puller.layout.root / folder).unlink()
    assert puller() is not None


def test_weights_that_are_not_what_their_hash_says(hub: HubStub, puller: Puller) -> None:
    files = ternary()
    repo = hub.add(NAME, files)
    tensors = files["model.safetensors"]
    repo.swapped["model.safetensors"] = tensors[:-1] + bytes([tensors[-1] ^ 1])
    with pytest.raises(QhError) as caught:
        puller()
    assert isinstance(caught.value, IntegrityError | DownloadError)
    manifest = puller.manifest()
    assert manifest is not None
    assert manifest.state == "pulling"
    repo.swapped.clear()
    assert puller() is not None
    assert puller.content() == files


def test_hostile_names_leave_nothing_anywhere(
    hub: HubStub, puller: Puller, store_root: Path
) -> None:
    files = ternary()
    names = [x for x in NAMES if isinstance(x, str)]

    def lie(answer: dict[str, Any]) -> None:
        some = answer["siblings"][0]
        answer["siblings"] += [{**some, "rfilename": x} for x in names]

    hub.add(NAME, files, lie=lie)
    manifest = puller()
    assert manifest is not None
    assert {x.path for x in manifest.files} == set(files)
    assert [x.name for x in store_root.iterdir()] == ["store"]
    assert puller.content() == files
    allowed = {*files, *(x.sha256 for x in manifest.files), "org--model", "org--model.json"}
    for path in puller.layout.root.rglob("*"):
        stem = path.name.removesuffix(".crc").removesuffix(".lock")
        known = stem in allowed or stem.startswith("git-") or stem == "store"
        assert known or path.parent == puller.layout.root, path


@pytest.mark.parametrize("path", ["config.json", "model.safetensors", "tokenizer.json"])
def test_needed_files_that_are_listed_twice_or_in_two_cases(
    path: str, hub: HubStub, puller: Puller
) -> None:
    def twice(answer: dict[str, Any]) -> None:
        entry = next(x for x in answer["siblings"] if x["rfilename"] == path)
        answer["siblings"].append(dict(entry))

    repo = hub.add(NAME, ternary(), lie=twice)
    with pytest.raises(StoreError):
        puller()
    files = ternary()
    repo.lie = None
    repo.push({**files, path.upper(): b"another", path.title(): b"another"})
    assert puller() is not None
    assert puller.content() == files


def test_relisting_checks_the_hash(hub: HubStub, puller: Puller) -> None:
    hub.add(NAME, ternary())
    manifest = puller()
    assert manifest is not None
    where = remote_files(manifest, FAST, endpoint=hub.endpoint)
    assert where is not None
    assert {k: x.key for k, x in where.items()} == {x.path: x.key for x in manifest.files}
    other = dataclasses.replace(
        manifest, files=tuple(dataclasses.replace(x, key="0" * 64) for x in manifest.files)
    )
    with pytest.raises(StoreError) as caught:
        remote_files(other, FAST, endpoint=hub.endpoint)
    assert caught.value.facts["file"] == "config.json"
    stop = StopSignal()
    stop.stop()
    hub.failures = [503]
    assert remote_files(manifest, FAST, endpoint=hub.endpoint, stop=stop) is None


def test_a_model_that_is_refused_leaves_no_manifest(hub: HubStub, puller: Puller) -> None:
    files = dense()
    settings = json.loads(files["config.json"])
    settings["model_type"] = "evil"
    hub.add(NAME, {**files, "config.json": json.dumps(settings).encode()})
    with pytest.raises(CheckpointError):
        puller()
    assert puller.manifest() is None
    assert large_requests(hub) == 0
    assert not any(isinstance(x, Checked | Linked) for x in puller.events)
