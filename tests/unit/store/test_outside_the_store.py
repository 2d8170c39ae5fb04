"""Repositories whose names, hashes, commits or indexes lead elsewhere: nothing there is touched."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import REPOSITORY, qh_environment
from tests.support.figures import Record
from tests.support.hub_stub import HubStub
from tests.unit.store.hostile_names import (
    COMMITS,
    DIGESTS,
    NAMES,
    REPOSITORIES,
    REVISIONS,
    SIZES,
)
from tests.unit.store.published_models import INDEX, dense, index_of, sharded

KINDS = (
    *("name", "weights name", "shard", "digest", "git hash"),
    *("size", "commit", "content", "asked"),
)


def publish(hub: HubStub, name: str, kind: str, dice: random.Random) -> dict[str, Any]:
    """A repository with one hostile field, and the request that pulls it."""
    files = dict(sharded() if kind == "shard" else dense())
    wrong: Any = dice.choice({"digest": DIGESTS, "size": SIZES, "commit": COMMITS}.get(kind, NAMES))
    if kind == "shard":
        shard = next(x for x in files if x.endswith(".safetensors"))
        files[INDEX] = index_of({str(wrong): ["a"], shard: ["b"]})
    if kind == "content":
        files[dice.choice(["config.json", "tokenizer_config.json"])] = json.dumps(
            {"auto_map": str(wrong), "chat_template": f"{{% include {str(wrong)!r} %}}"}
        ).encode()

    def lie(answer: dict[str, Any]) -> None:
        entries = answer["siblings"]
        large = [x for x in entries if "lfs" in x]
        if kind == "name":
            dice.choice(entries)["rfilename"] = wrong
        elif kind == "weights name":
            large[0]["rfilename"] = f"{wrong}/model.safetensors"
        elif kind == "digest":
            large[0]["lfs"]["sha256"] = wrong
        elif kind == "git hash":
            dice.choice(entries)["blobId"] = dice.choice(DIGESTS)
        elif kind == "size":
            dice.choice(entries)["size"] = wrong
            large[0]["lfs"]["size"] = wrong
        elif kind == "commit":
            answer["sha"] = wrong

    hub.add(name, files, lie=lie)
    if kind != "asked":
        return {"repo": name}
    asked = dice.choice(["repo", "revision", "artifact"])
    hostile = dice.choice({"repo": REPOSITORIES, "revision": REVISIONS}.get(asked, NAMES))
    return {"repo": name, asked: str(hostile)}


@pytest.mark.parametrize("count", [18, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_outside_is_read_or_written(
    hub: HubStub, store_root: Path, count: int, record_property: Record
) -> None:
    dice = random.Random(20261124)
    requests = [
        publish(hub, f"org/hostile-{number}", KINDS[number % len(KINDS)], dice)
        for number in range(count)
    ]
    # Where relative names lead, from the store and from its folders.
    baits = {store_root / x: x.encode() for x in ("x", "config.json", "model.safetensors", "etc")}
    for path, content in baits.items():
        path.write_bytes(content)
    home = store_root / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hostile_pulls", hub.endpoint, str(store_root)],
        input="\n".join(map(json.dumps, requests)),
        env=qh_environment(home, HF_HOME=str(home), HF_HUB_OFFLINE="0", HOME=str(home)),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found["outcomes"].values()) == count
    assert len(found["outcomes"]) > 2, "every one ended alike: the fields were not looked at"
    assert not any(x.startswith("unclear") for x in found["outcomes"]), found["outcomes"]
    record_property("cases", count)
    assert found["outside"] == []
    store = store_root / "store"
    left = {x for x in store_root.rglob("*") if x.is_file() and store not in x.parents}
    record_property("outside_bytes", sum(x.stat().st_size for x in left - set(baits)))
    assert left == set(baits)
    assert all(path.read_bytes() == content for path, content in baits.items())
    folders = {"blobs", "locks", "manifests", "parts", "snapshots"}
    assert {x.name for x in store.iterdir()} <= folders
    for blob in (store / "blobs").iterdir():
        if blob.suffix != ".crc":
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    for link in (store / "snapshots").rglob("*"):
        assert not link.is_symlink() or link.resolve().parent == (store / "blobs").resolve()
