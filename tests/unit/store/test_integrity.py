"""Damage after a download is found: every byte by `verify`, what a glance can see by `check`."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qh_runtime.errors import IntegrityError
from qh_runtime.store.integrity import Finding, Verifier, check, damaged_chunks
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import Manifest, StoredFile
from qh_runtime.store.part import CHUNK_BYTES
from qh_runtime.store.snapshot import wrong_links
from qh_runtime.store.transfer import StopSignal
from tests.support.stored_models import put_blob, store_model

MIB = CHUNK_BYTES
WEIGHTS = random.Random(1).randbytes(5 * MIB + 12_345)
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "empty": b""}


@pytest.fixture
def layout(store_root: Path) -> StoreLayout:
    return StoreLayout(store_root / "store")


@pytest.fixture
def manifest(layout: StoreLayout) -> Manifest:
    return store_model(layout, "org/model", FILES)


def weights(manifest: Manifest) -> StoredFile:
    return next(x for x in manifest.files if x.path == "model.safetensors")


def edit(layout: StoreLayout, file: StoredFile, change: Callable[[bytearray], None]) -> Path:
    """Change a blob in place, as a bad disk does: its times stay as they were."""
    blob = layout.blob(file.sha256)
    before = blob.stat()
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    change(data)
    with blob.open("r+b") as out:
        out.write(data)
        out.truncate(len(data))
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    return blob


def flip(at: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at] ^= 0x10

    return change


def verify(layout: StoreLayout, manifest: Manifest) -> tuple[Finding, ...]:
    found = Verifier(layout).verify(manifest)
    assert found is not None
    return found


def test_a_sound_model_has_no_findings(layout: StoreLayout, manifest: Manifest) -> None:
    assert verify(layout, manifest) == ()
    check(layout, manifest)


# Damage, the problem that is named, and how many bytes are bad as far as the CRCs tell.
DAMAGE: list[tuple[str, Callable[[bytearray], None], str, int]] = [
    ("first byte", flip(0), "content", MIB),
    ("last byte", flip(-1), "content", 12_345),
    ("end of a MiB", flip(MIB - 1), "content", MIB),
    ("begin of a MiB", flip(MIB), "content", MIB),
    ("zeroed MiB", lambda x: x.__setitem__(slice(2 * MIB, 3 * MIB), bytes(MIB)), "content", MIB),
    ("zeroed file", lambda x: x.__setitem__(slice(0, len(x)), bytes(len(x))), "content", 5 * MIB
     + 12_345),
    ("two places", lambda x: (flip(10)(x), flip(4 * MIB + 3)(x))[0], "content", 2 * MIB),
    ("cut by a byte", lambda x: x.__delitem__(slice(-1, None)), "size", 12_345),
    ("cut to a MiB", lambda x: x.__delitem__(slice(MIB, None)), "size", 4 * MIB + 12_345),
    ("cut to nothing", lambda x: x.clear(), "size", 5 * MIB + 12_345),
    ("longer", lambda x: x.extend(b"x"), "size", 0),
]  # fmt: skip


@pytest.mark.parametrize(("change", "problem", "bad_bytes"), [x[1:] for x in DAMAGE],
                         ids=[x[0] for x in DAMAGE])  # fmt: skip
def test_verify_finds_every_change(
    layout: StoreLayout,
    manifest: Manifest,
    change: Callable[[bytearray], None],
    problem: str,
    bad_bytes: int,
) -> None:
    edit(layout, weights(manifest), change)
    (finding,) = verify(layout, manifest)
    assert (finding.path, finding.problem) == ("model.safetensors", problem)
    assert finding.sha256 == weights(manifest).sha256
    assert finding.bad_bytes == bad_bytes


def test_missing_files_and_what_lies_in_their_place(
    layout: StoreLayout, manifest: Manifest
) -> None:
    blob = layout.blob(weights(manifest).sha256)
    away = blob.rename(layout.root / "away")
    for put in (lambda: None, lambda: os.mkfifo(blob), lambda: blob.symlink_to(away)):
        put()
        (finding,) = verify(layout, manifest)
        assert (finding.problem, finding.bad_bytes) == ("missing", len(WEIGHTS))
        with pytest.raises(IntegrityError):
            check(layout, manifest)
        blob.unlink(missing_ok=True)
    blob.mkdir()
    assert [x.problem for x in verify(layout, manifest)] == ["missing"]


def test_permissions_and_times_do_not_matter(layout: StoreLayout, manifest: Manifest) -> None:
    blob = layout.blob(weights(manifest).sha256)
    for mode in (0o444, 0o644, 0o777, 0o400):
        blob.chmod(mode)
        os.utime(blob, (1, 1))
        assert verify(layout, manifest) == ()
        check(layout, manifest)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(layout: StoreLayout, manifest: Manifest) -> None:
    layout.blob(weights(manifest).sha256).chmod(0)
    assert [x.problem for x in verify(layout, manifest)] == ["unreadable"]
    with pytest.raises(IntegrityError):
        check(layout, manifest, pick=lambda count, taken: range(taken))


def test_wrong_links_are_found_and_put_right_by_a_load(
    layout: StoreLayout, manifest: Manifest
) -> None:
    folder = layout.snapshot("org/model")
    (folder / "config.json").unlink()
    (folder / "config.json").write_bytes(b'{"a": 1}')
    (folder / "model.safetensors").unlink()
    found = {(x.path, x.problem, x.bad_bytes) for x in verify(layout, manifest)}
    assert found == {("config.json", "link", 0), ("model.safetensors", "link", 0)}
    check(layout, manifest)
    assert wrong_links(layout, manifest) == ()
    shutil.rmtree(folder)
    check(layout, manifest)
    assert verify(layout, manifest) == ()


@pytest.mark.parametrize("data", [None, b"", b"x" * 44, b"QHCRCS01"])
def test_a_crc_file_that_is_gone_or_damaged(
    layout: StoreLayout, manifest: Manifest, data: bytes | None
) -> None:
    checks = layout.blob_checks(weights(manifest).sha256)
    checks.unlink()
    if data is not None:
        checks.write_bytes(data)
    assert [x.problem for x in verify(layout, manifest)] == ["checks"]
    # Without it every MiB of a damaged file counts as bad.
    edit(layout, weights(manifest), flip(7))
    assert [(x.problem, x.bad_bytes) for x in verify(layout, manifest)] == [
        ("content", len(WEIGHTS))
    ]
    assert damaged_chunks(layout, weights(manifest)) == tuple(range(6))


def test_what_models_share_is_read_once(layout: StoreLayout, manifest: Manifest) -> None:
    twin = store_model(layout, "org/twin", {**FILES, "config.json": b"{}"})
    edit(layout, weights(manifest), flip(7))
    seen: list[tuple[str, str]] = []
    verifier = Verifier(layout, lambda x: seen.append((x.name, x.path)))
    first, second = verifier.verify(manifest), verifier.verify(twin)
    assert [x.problem for x in first or ()] == [x.problem for x in second or ()] == ["content"]
    assert ("org/model", "model.safetensors") in seen
    assert ("org/twin", "model.safetensors") not in seen
    assert ("org/twin", "config.json") in seen


def test_progress_covers_every_byte_and_a_stop_ends_it(
    layout: StoreLayout, manifest: Manifest
) -> None:
    seen = []
    Verifier(layout, seen.append).verify(manifest)
    assert [x.done_bytes for x in seen] == sorted(x.done_bytes for x in seen)
    assert seen[-1].done_bytes == seen[-1].total_bytes == manifest.total_bytes
    stop = StopSignal()
    count = 0

    def stop_at_the_third(_: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            stop.stop()

    assert Verifier(layout, stop_at_the_third, stop).verify(manifest) is None
    assert count == 3


def picked(*numbers: int) -> Callable[[int, int], Sequence[int]]:
    def pick(count: int, taken: int) -> Sequence[int]:
        assert (count, taken) == (6, 4)
        return numbers

    return pick


def test_a_load_looks_at_a_few_mib(layout: StoreLayout, manifest: Manifest) -> None:
    edit(layout, weights(manifest), flip(3 * MIB + 5))
    check(layout, manifest, picked(0, 1, 2, 4))
    with pytest.raises(IntegrityError) as caught:
        check(layout, manifest, picked(0, 3))
    assert caught.value.facts["file"] == "model.safetensors"
    assert caught.value.hint is not None
    assert "qh-chat verify org/model --repair" in caught.value.hint


def test_a_load_draws_other_mib_each_time(layout: StoreLayout, manifest: Manifest) -> None:
    """Four of six are looked at: one flip escapes forty loads with a chance of 3 ** -40."""
    edit(layout, weights(manifest), flip(3 * MIB + 5))
    found = 0
    for _ in range(40):
        try:
            check(layout, manifest)
        except IntegrityError:
            found += 1
    assert found > 0


def test_a_load_sees_every_size_and_small_file(layout: StoreLayout, manifest: Manifest) -> None:
    config = next(x for x in manifest.files if x.path == "config.json")
    edit(layout, config, flip(3))
    with pytest.raises(IntegrityError):
        check(layout, manifest, picked())
    edit(layout, config, flip(3))
    check(layout, manifest, picked())
    edit(layout, weights(manifest), lambda x: x.extend(b"x"))
    with pytest.raises(IntegrityError):
        check(layout, manifest, picked())


def test_a_file_that_was_written_to_is_looked_at_in_full_once(
    layout: StoreLayout, manifest: Manifest
) -> None:
    blob = edit(layout, weights(manifest), flip(3 * MIB + 5))
    os.utime(blob)
    with pytest.raises(IntegrityError):
        check(layout, manifest, picked())
    edit(layout, weights(manifest), flip(3 * MIB + 5))
    os.utime(blob)
    check(layout, manifest, picked())
    # It was sound and is trusted again, so the next look is a glance.
    edit(layout, weights(manifest), flip(3 * MIB + 5))
    check(layout, manifest, picked())


def test_a_glance_costs_milliseconds(
    layout: StoreLayout, record_property: Callable[[str, object], None]
) -> None:
    """The goal is a few ms; the bound leaves room for a busy machine."""
    files = {f"model-{x}.safetensors": random.Random(x).randbytes(9 * MIB) for x in range(4)}
    files["tokenizer.json"] = random.Random(9).randbytes(MIB)
    manifest = store_model(layout, "org/large", files)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        check(layout, manifest)
        times.append(time.perf_counter() - start)
    record_property("check_ms", min(times) * 1e3)
    print(f"check at load: {min(times) * 1e3:.2f} ms")
    assert min(times) < 0.2


def test_manifests_that_name_blobs_of_another_size(layout: StoreLayout, manifest: Manifest) -> None:
    sha256 = put_blob(layout, b"four")
    wrong = replace(manifest, files=(StoredFile("a", 5, sha256, sha256),))
    assert [x.problem for x in verify(layout, wrong)][:1] == ["size"]
