"""Twenty kinds of damage: all found, all put right, and nothing fetched that was not bad."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qh_runtime.errors import IntegrityError, ModelNotFoundError, StoreError
from qh_runtime.store.integrity import Finding, Verifier, check
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import Manifest, StoredFile, write_manifest
from qh_runtime.store.part import CHUNK_BYTES
from qh_runtime.store.repair_model import repair_model
from qh_runtime.store.transfer import FetchOptions, StopSignal, TransferProgress
from tests.support.figures import Record
from tests.support.hub_stub import HubStub
from tests.support.stored_models import store_model

MIB = CHUNK_BYTES
FAST = FetchOptions(retry_delay_s=0.001, max_delay_s=0.01)
WEIGHTS = random.Random(1).randbytes(3 * MIB + 12_345)
FILES = {
    "config.json": b'{"a": 1}',
    "tokenizer.json": random.Random(2).randbytes(MIB + 100),
    "model.safetensors": WEIGHTS,
    "LICENSE": b"terms",
}


@pytest.fixture
def layout(store_root: Path) -> StoreLayout:
    return StoreLayout(store_root / "store")


@pytest.fixture
def manifest(layout: StoreLayout, hub: HubStub) -> Manifest:
    repo = hub.add("org/model", FILES)
    return store_model(
        layout, "org/model", FILES, endpoint=hub.endpoint, commit=repo.branches["main"]
    )


def file_of(manifest: Manifest, path: str) -> StoredFile:
    return next(x for x in manifest.files if x.path == path)


def edit(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a file in place without a trace in its times."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    change(data)
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def flip(*places: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        for x in places:
            data[x] ^= 4

    return change


def cut(size: int) -> Callable[[bytearray], None]:
    return lambda data: data.__delitem__(slice(size, None))


def fill(begin: int, end: int, byte: int = 0) -> Callable[[bytearray], None]:
    return lambda data: data.__setitem__(slice(begin, end), bytes([byte]) * (end - begin))


def blob_damage(
    path: str, change: Callable[[bytearray], None]
) -> Callable[[StoreLayout, Manifest], None]:
    return lambda layout, manifest: edit(layout.blob(file_of(manifest, path).sha256), change)


def remove_blob(path: str) -> Callable[[StoreLayout, Manifest], None]:
    return lambda layout, manifest: layout.blob(file_of(manifest, path).sha256).unlink()


def checks_damage(change: Callable[[bytearray], None]) -> Callable[[StoreLayout, Manifest], None]:
    def damage(layout: StoreLayout, manifest: Manifest) -> None:
        edit(layout.blob_checks(file_of(manifest, "model.safetensors").sha256), change)

    return damage


def link_damage(put: Callable[[Path], None]) -> Callable[[StoreLayout, Manifest], None]:
    def damage(layout: StoreLayout, manifest: Manifest) -> None:
        link = layout.snapshot(manifest.name) / "model.safetensors"
        link.unlink()
        put(link)

    return damage


def both(layout: StoreLayout, manifest: Manifest) -> None:
    blob_damage("model.safetensors", flip(5))(layout, manifest)
    checks_damage(cut(0))(layout, manifest)


# What is done, what is found, and how many bytes are fetched for it.
DAMAGES: dict[str, tuple[Callable[[StoreLayout, Manifest], None], str, int]] = {
    "bit in the header": (blob_damage("model.safetensors", flip(3)), "content", MIB),
    "bit in the middle": (blob_damage("model.safetensors", flip(MIB + 7)), "content", MIB),
    "last bit": (blob_damage("model.safetensors", flip(-1)), "content", 12_345),
    "bits in two MiB": (blob_damage("model.safetensors", flip(0, 2 * MIB)), "content", 2 * MIB),
    "bits in three": (blob_damage("model.safetensors", flip(1, MIB, -1)), "content",
                      2 * MIB + 12_345),
    "bits in one MiB": (blob_damage("model.safetensors", flip(1, 2, 3)), "content", MIB),
    "zeroed MiB": (blob_damage("model.safetensors", fill(MIB, 2 * MIB)), "content", MIB),
    "zeroed page": (blob_damage("model.safetensors", fill(MIB, MIB + 4096)), "content", MIB),
    "zeroed across": (blob_damage("model.safetensors", fill(MIB - 2, MIB + 2)), "content",
                      2 * MIB),
    "zeroed file": (blob_damage("model.safetensors", fill(0, len(WEIGHTS))), "content",
                    len(WEIGHTS)),
    "ones": (blob_damage("model.safetensors", fill(2 * MIB, 2 * MIB + 9, 255)), "content", MIB),
    "cut by a byte": (blob_damage("model.safetensors", cut(-1)), "size", 12_345),
    "cut in the middle": (blob_damage("model.safetensors", cut(MIB + 5)), "size",
                          2 * MIB + 12_345),
    "cut to nothing": (blob_damage("model.safetensors", cut(0)), "size", len(WEIGHTS)),
    "longer": (blob_damage("model.safetensors", lambda x: x.extend(b"xx")), "size", 0),
    "missing": (remove_blob("model.safetensors"), "missing", len(WEIGHTS)),
    "small file": (blob_damage("config.json", flip(2)), "content", len(FILES["config.json"])),
    "end of a tokenizer": (blob_damage("tokenizer.json", flip(-1)), "content", 100),
    "small file missing": (remove_blob("LICENSE"), "missing", len(FILES["LICENSE"])),
    "CRCs gone": (checks_damage(cut(0)), "checks", 0),
    "CRCs damaged": (checks_damage(flip(30)), "checks", 0),
    "content and CRCs": (both, "content", len(WEIGHTS)),
    "link gone": (link_damage(lambda link: None), "link", 0),
    "link elsewhere": (link_damage(lambda link: link.symlink_to("/etc/passwd")), "link", 0),
    "file for a link": (link_damage(lambda link: link.write_bytes(WEIGHTS) and None), "link", 0),
    "folder for a link": (link_damage(lambda link: link.mkdir()), "link", 0),
}  # fmt: skip


def served_bytes(hub: HubStub) -> int:
    """Bytes of file content that the hub has sent."""
    total = 0
    for asked in hub.asked:
        if asked.method != "GET" or asked.status not in (200, 206):
            continue
        path = asked.path.rpartition("/")[2]
        size = len(WEIGHTS) if asked.server == "content" else len(FILES.get(path, b""))
        if asked.status == 206 and asked.span is not None:
            begin, _, end = asked.span.removeprefix("bytes=").partition("-")
            size = min(size, int(end) + 1 if end else size) - int(begin)
        total += size if asked.server == "content" or path in FILES else 0
    return total


def verified(layout: StoreLayout, manifest: Manifest) -> tuple[Finding, ...]:
    found = Verifier(layout).verify(manifest)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", DAMAGES)
def test_found_and_repaired_with_the_bad_bytes_alone(
    layout: StoreLayout, manifest: Manifest, hub: HubStub, kind: str
) -> None:
    damage, problem, bytes_needed = DAMAGES[kind]
    damage(layout, manifest)
    findings = verified(layout, manifest)
    assert [x.problem for x in findings] == [problem]
    done = repair_model(layout, manifest, findings, FAST)
    assert done is not None
    assert [(x.path, x.problem) for x in done] == [(x.path, x.problem) for x in findings]
    assert verified(layout, manifest) == ()
    check(layout, manifest)
    assert served_bytes(hub) == bytes_needed
    assert done[0].fetched_bytes == bytes_needed
    for path, content in FILES.items():
        assert (layout.snapshot("org/model") / path).read_bytes() == content
    assert not list(layout.parts.glob("*"))


@pytest.mark.slow
def test_two_hundred_drawn_at_random(
    layout: StoreLayout, manifest: Manifest, hub: HubStub, record_property: Record
) -> None:
    rng = random.Random(20261123)
    paths = {x: layout.blob(file_of(manifest, x).sha256) for x in FILES}
    for _ in range(200):
        path = rng.choice(list(FILES))
        size = len(FILES[path])
        begin = rng.randrange(size)
        end = min(size, begin + rng.choice((1, 100, 4096, MIB)))
        damage = rng.choice((flip(begin), fill(begin, end), fill(begin, end, 255), cut(begin)))
        before = paths[path].read_bytes()
        edit(paths[path], damage)
        changed = paths[path].read_bytes() != before
        findings = verified(layout, manifest)
        assert [x.path for x in findings] == ([path] if changed else [])
        hub.asked.clear()
        assert repair_model(layout, manifest, findings, FAST) is not None
        assert verified(layout, manifest) == ()
        assert served_bytes(hub) == sum(x.bad_bytes for x in findings)
    record_property("cases", 200)


def test_many_at_once(layout: StoreLayout, manifest: Manifest, hub: HubStub) -> None:
    for kind in ("bits in two MiB", "small file missing", "end of a tokenizer"):
        DAMAGES[kind][0](layout, manifest)
    (layout.snapshot("org/model") / "LICENSE").unlink()
    findings = verified(layout, manifest)
    assert len(findings) == 4
    done = repair_model(layout, manifest, findings, FAST)
    assert done is not None
    assert len(done) == 4
    assert verified(layout, manifest) == ()
    assert served_bytes(hub) == 2 * MIB + len(FILES["LICENSE"]) + 100


def test_a_repair_that_is_stopped_goes_on(
    layout: StoreLayout, manifest: Manifest, hub: HubStub
) -> None:
    DAMAGES["zeroed file"][0](layout, manifest)
    findings = verified(layout, manifest)
    stop = StopSignal()

    def stop_in_the_middle(progress: TransferProgress) -> None:
        if progress.state == "fetch" and progress.done_bytes >= MIB:
            stop.stop()

    # Two seconds from the stop to the end, where nobody stopped.
    slow = replace(FAST, bytes_per_s=MIB, connections=1)
    assert repair_model(layout, manifest, findings, slow, stop_in_the_middle, stop) is None
    # What is there stays until the new one takes its place.
    assert layout.blob(findings[0].sha256).exists()
    assert repair_model(layout, manifest, findings, FAST) is not None
    assert verified(layout, manifest) == ()


def test_what_the_hub_no_longer_has(layout: StoreLayout, manifest: Manifest, hub: HubStub) -> None:
    DAMAGES["bit in the middle"][0](layout, manifest)
    findings = verified(layout, manifest)
    other = replace(manifest, commit="d" * 40)
    with pytest.raises(ModelNotFoundError):
        repair_model(layout, other, findings, FAST)
    hub.repos["org/model"].commits[manifest.commit]["model.safetensors"] = b"another"
    with pytest.raises(StoreError) as caught:
        repair_model(layout, manifest, findings, FAST)
    assert caught.value.facts["file"] == "model.safetensors"


def test_imported_models_are_repaired_from_their_folder(
    layout: StoreLayout, tmp_path: Path
) -> None:
    folder = tmp_path / "stick"
    folder.mkdir()
    for path, content in FILES.items():
        (folder / path).write_bytes(content)
    manifest = store_model(
        layout, "imported", FILES, origin="import", endpoint=str(folder), repo="", commit=""
    )
    DAMAGES["bit in the middle"][0](layout, manifest)
    findings = verified(layout, manifest)
    assert repair_model(layout, manifest, findings, FAST) is not None
    assert verified(layout, manifest) == ()
    # The folder has other content by now, or is gone: nothing takes its place.
    DAMAGES["bit in the middle"][0](layout, manifest)
    findings = verified(layout, manifest)
    edit(folder / "model.safetensors", flip(9))
    with pytest.raises(IntegrityError):
        repair_model(layout, manifest, findings, FAST)
    shutil.rmtree(folder)
    with pytest.raises(IntegrityError) as caught:
        repair_model(layout, manifest, verified(layout, manifest), FAST)
    assert str(folder) in (caught.value.hint or "")


def test_what_is_left_of_a_removed_source_comes_from_nowhere(
    layout: StoreLayout, hub: HubStub
) -> None:
    manifest = store_model(
        layout, "org/model", {"config.json": b"{}", "kept.json": b"{}"}, dropped=True
    )
    write_manifest(layout, manifest)
    edit(layout.blob(file_of(manifest, "kept.json").sha256), flip(0))
    with pytest.raises(IntegrityError) as caught:
        repair_model(layout, manifest, verified(layout, manifest), FAST)
    assert "qh-chat pull org/model" in (caught.value.hint or "")
    assert hub.asked == []
