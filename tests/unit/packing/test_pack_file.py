"""Packs on disk: written once, mapped afterwards, never half there, never trusted blindly."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import open_checkpoint, read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.errors import StoreError
from qh_runtime.packing import PackedModel, load_packed_model, pack_file
from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint

PACK = "int4_g32"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", config(), random_tensors(spec_of()))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(checkpoint: Path, cache: Path, **options: Any) -> PackedModel | None:
    settings = read_config(checkpoint).model
    return load_packed_model(
        spec_from_config(settings),
        open_checkpoint(checkpoint),
        layout_for(settings),
        **{"pack": PACK, "cache_folder": cache, **options},
    )


def loaded(checkpoint: Path, cache: Path, **options: Any) -> PackedModel:
    model = load(checkpoint, cache, **options)
    assert model is not None
    return model


def content(model: PackedModel) -> bytes:
    weights = model.weights
    parts = [weights.embedding, weights.head]
    for layer in weights.layers:
        parts += [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down]
    return b"".join(part.data.tobytes() for part in parts)


def files(cache: Path) -> list[str]:
    """Everything in the cache but locks, hidden files included."""
    return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock"))


def test_the_second_start_maps_what_the_first_wrote(checkpoint: Path, cache: Path) -> None:
    first = loaded(checkpoint, cache)
    assert first.pack_path is not None
    status = first.pack_path.stat()
    second = loaded(checkpoint, cache)
    assert (first.origin, second.origin) == ("written", "mapped")
    assert second.pack_path == first.pack_path
    assert content(second) == content(first)
    after = first.pack_path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert files(cache) == [first.pack_path.name]
    memory = loaded(checkpoint, cache, cache_folder=None)
    assert memory.origin == "memory"
    assert content(memory) == content(first)


def test_the_file_is_plain_safetensors_with_aligned_tensors(checkpoint: Path, cache: Path) -> None:
    from safetensors import safe_open

    model = loaded(checkpoint, cache)
    assert model.pack_path is not None
    with safe_open(model.pack_path, framework="numpy") as file:
        metadata = file.metadata()
        assert metadata["qh_pack_version"] == str(pack_file.PACK_VERSION)
        for matrix in model.matrices:
            assert file.get_tensor(matrix.name).nbytes == matrix.nbytes
    raw = model.pack_path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    assert start % 4096 == 0
    header = json.loads(raw[8:start])
    for matrix in model.matrices:
        assert header[matrix.name]["data_offsets"][0] % 64 == 0


def test_a_pack_names_what_it_was_made_from(checkpoint: Path, cache: Path) -> None:
    from safetensors import safe_open

    for folder, named in ((checkpoint, str(checkpoint)), (Path("\udcff"), ""), (None, "")):
        path = loaded(checkpoint, cache, folder=folder).pack_path
        assert path is not None
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        assert metadata[pack_file.SOURCE_KEY] == open_checkpoint(checkpoint).identity()
        assert metadata[pack_file.FOLDER_KEY] == named
        # And so it is found again, wherever it was made from.
        assert loaded(checkpoint, cache).origin == "mapped"
        path.unlink()


def test_a_pack_without_a_name_for_its_source_is_read_as_before(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = pack_file.PackWriter._render

    def plain(self: pack_file.PackWriter, samples: str) -> bytes:
        self._about = {}
        return render(self, samples)

    monkeypatch.setattr(pack_file.PackWriter, "_render", plain)
    assert loaded(checkpoint, cache).origin == "written"
    monkeypatch.undo()
    assert loaded(checkpoint, cache).origin == "mapped"


def test_a_pack_that_lies_elsewhere_is_taken_if_it_is_the_one(
    checkpoint: Path, cache: Path, tmp_path: Path
) -> None:
    path = loaded(checkpoint, cache).pack_path
    assert path is not None
    kept = path.rename(tmp_path / "kept")
    assert loaded(checkpoint, cache, kept_pack=kept).pack_path == kept
    assert files(cache) == []
    other = loaded(checkpoint, cache, kept_pack=kept, pack="int8")
    assert (other.origin, len(files(cache))) == ("written", 1)
    again = loaded(checkpoint, cache, kept_pack=tmp_path / "gone")
    assert (again.origin, again.pack_path) == ("written", path)


def test_each_format_and_each_state_of_the_source_has_its_own_pack(
    checkpoint: Path, cache: Path
) -> None:
    one = loaded(checkpoint, cache).pack_path
    two = loaded(checkpoint, cache, pack="int8").pack_path
    weights = checkpoint / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    three = loaded(checkpoint, cache)
    assert three.origin == "written"
    assert len({one, two, three.pack_path}) == 3


def test_changed_weights_are_never_taken_from_an_old_pack(checkpoint: Path, cache: Path) -> None:
    first = loaded(checkpoint, cache)
    write_checkpoint(checkpoint, config(), random_tensors(spec_of(), seed=2))
    second = loaded(checkpoint, cache)
    assert second.origin == "written"
    assert content(second) != content(first)
    assert content(second) == content(loaded(checkpoint, cache, cache_folder=None))


# Damage.


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0xFF
    path.write_bytes(bytes(raw))


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[start:])


def set_metadata(key: str, value: str) -> Callable[[Path], None]:
    return lambda path: edit_header(path, lambda h: h["__metadata__"].update({key: value}))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "cut by one byte": lambda path: path.write_bytes(path.read_bytes()[:-1]) and None,
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"x") and None,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "header": lambda path: flip(path, 20),
    "first byte of the data": lambda path: flip(
        path, 8 + int.from_bytes(path.read_bytes()[:8], "little")
    ),
    "last byte": lambda path: flip(path, path.stat().st_size - 1),
    "version": set_metadata("qh_pack_version", "0"),
    "key": set_metadata("qh_pack_key", "0" * 32),
    "matrices": set_metadata("qh_matrices", "[]"),
    "samples": set_metadata("qh_samples", "0" * 32),
    "no metadata": lambda path: edit_header(path, lambda h: h.pop("__metadata__")),
    "two tensors exchanged": lambda path: edit_header(
        path,
        lambda h: h.update(
            {
                "model.layers.0.mlp.up_proj": h["model.layers.0.mlp.gate_proj"],
                "model.layers.0.mlp.gate_proj": h["model.layers.0.mlp.up_proj"],
            }
        ),
    ),
    "names of other tensors": lambda path: edit_header(
        path, lambda h: h.update({"other": h.pop("lm_head")})
    ),
    "other types": lambda path: edit_header(
        path,
        lambda h: [h[name].update(dtype="I8") for name in h if name != "__metadata__"] and None,
    ),
    "a link": lambda path: (path.rename(path.with_suffix(".x")), path.symlink_to("x"))[1],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_pack_is_made_again(kind: str, checkpoint: Path, cache: Path) -> None:
    first = loaded(checkpoint, cache)
    assert first.pack_path is not None
    expected = content(first)
    DAMAGE[kind](first.pack_path)
    again = loaded(checkpoint, cache)
    assert again.origin == "written"
    assert content(again) == expected
    assert loaded(checkpoint, cache).origin == "mapped"


def test_replacing_a_pack_leaves_older_mappings_unharmed(checkpoint: Path, cache: Path) -> None:
    first = loaded(checkpoint, cache)
    assert first.pack_path is not None
    expected = content(first)
    set_back = first.pack_path.with_suffix(".other")
    set_back.write_bytes(bytes(100))
    os.replace(set_back, first.pack_path)
    assert loaded(checkpoint, cache).origin == "written"
    assert content(first) == expected


# Cancelling, progress.


def test_cancelling_returns_none_and_leaves_nothing(checkpoint: Path, cache: Path) -> None:
    assert load(checkpoint, cache, cancelled=lambda: True) is None
    assert files(cache) == []
    assert load(checkpoint, cache, cancelled=lambda: True, cache_folder=None) is None
    assert loaded(checkpoint, cache).origin == "written"


def test_a_waiting_process_can_be_cancelled(checkpoint: Path, cache: Path) -> None:
    from filelock import FileLock

    path = loaded(checkpoint, cache).pack_path
    assert path is not None
    path.unlink()
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) >= 3

    with FileLock(path.with_name(f".{path.name}.lock")):
        assert load(checkpoint, cache, cancelled=cancelled) is None
    assert len(asked) == 3


def test_progress_grows_to_the_whole(checkpoint: Path, cache: Path) -> None:
    told: list[tuple[int, int]] = []
    model = loaded(checkpoint, cache, progress=lambda done, total: told.append((done, total)))
    total = sum(matrix.nbytes for matrix in model.matrices if matrix.repacked)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    told.clear()
    loaded(checkpoint, cache, progress=lambda done, total: told.append((done, total)))
    assert told == []


# Disks that refuse.


def test_too_little_space_is_found_before_the_work(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(pack_file.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError) as error:
        loaded(checkpoint, cache)
    assert error.value.facts["free_bytes"] == 1000
    assert error.value.facts["required_bytes"] > 1000
    assert files(cache) == []
    model = loaded(checkpoint, cache, memory_fallback=True)
    assert model.origin == "memory"
    assert model.pack_path is None
    assert model.reason is not None
    assert "1000 are free" in model.reason


def test_a_cache_that_cannot_be_written(checkpoint: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(StoreError) as error:
        loaded(checkpoint, cache)
    assert error.value.facts["path"].startswith(str(cache))
    assert loaded(checkpoint, cache, memory_fallback=True).origin == "memory"


def failing_at(nth: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but its nth call finds the disk full."""
    calls = itertools.count()

    def sometimes(*args: Any, **more: Any) -> Any:
        if next(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **more)

    return sometimes


def test_a_file_that_cannot_be_made(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse_parts(path: Any, *args: Any, **more: Any) -> int:
        if str(path).endswith(".part"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", refuse_parts)
    with pytest.raises(StoreError) as error:
        loaded(checkpoint, cache)
    assert error.value.facts["reason"] == "Permission denied"


def test_a_disk_whose_space_cannot_be_asked_for(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_file.shutil, "disk_usage", failing_at(0, lambda path: None))
    with pytest.raises(StoreError):
        loaded(checkpoint, cache)


@pytest.mark.parametrize("how", ["absent", "not supported"])
def test_file_systems_that_cannot_reserve_space_are_written_all_the_same(
    how: str, checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_supported(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if how == "absent":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", not_supported)
    assert loaded(checkpoint, cache).origin == "written"
    assert loaded(checkpoint, cache).origin == "mapped"


def test_a_pack_that_cannot_be_read_back_is_an_error(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace_and_damage(source: Any, target: Any) -> None:
        real(source, target)
        flip(Path(target), os.stat(target).st_size - 1)

    monkeypatch.setattr(os, "replace", replace_and_damage)
    with pytest.raises(StoreError) as error:
        loaded(checkpoint, cache)
    assert error.value.facts["path"].startswith(str(cache))


def test_cancelling_in_the_middle_stops_the_workers(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write waits until the cancel was seen; then no second matrix may be begun."""
    asked = threading.Event()
    writes: list[int] = []
    real = os.pwrite

    def wait_for_cancel(*args: Any) -> int:
        writes.append(1)
        assert asked.wait(10)
        return real(*args)

    def cancelled() -> bool:
        if writes:
            asked.set()
        return bool(writes)

    monkeypatch.setattr(os, "pwrite", wait_for_cancel)
    assert load(checkpoint, cache, cancelled=cancelled, threads=1) is None
    assert 1 <= len(writes) < 16
    assert files(cache) == []


def test_what_progress_raises_comes_out_and_nothing_is_left(checkpoint: Path, cache: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loaded(checkpoint, cache, progress=interrupt)
    assert files(cache) == []
    assert loaded(checkpoint, cache).origin == "written"


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "replace"])
def test_every_failing_call_leaves_nothing_behind(
    call: str, checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for failing in range(100):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing_at(failing, getattr(os, call)))
            try:
                model = loaded(checkpoint, cache)
            except StoreError as error:
                refusal = error
            else:
                assert model.origin == "written"
                break
        assert refusal.facts["reason"] == "No space left on device"
        # A folder that cannot be synced after the rename is the one late failure: the file is
        # complete by then, and used on the next start.
        if files(cache):
            assert call == "fsync"
            assert loaded(checkpoint, cache).origin == "mapped"
            break
    assert failing >= 1
    assert [name for name in files(cache) if name.endswith(".part")] == []


_CHILD = """
import os, signal, sys
from pathlib import Path
from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import open_checkpoint, read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.errors import StoreError
from qh_runtime.packing import load_packed_model

checkpoint, cache, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
fallback = False
if what.startswith("limit"):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    fallback = what == "limit-fallback"
elif what.startswith("kill"):
    _, call, nth = what.split(":")
    real, count = getattr(os, call), 0
    def kill(*args, **more):
        global count
        count += 1
        if count == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    setattr(os, call, kill)
elif what.startswith("wait"):
    go = Path(what[5:])
    Path(str(go) + f".{os.getpid()}").touch()
    while not go.exists():
        pass
settings = read_config(checkpoint).model
try:
    model = load_packed_model(
        spec_from_config(settings), open_checkpoint(checkpoint), layout_for(settings),
        pack="int4_g32", cache_folder=cache, memory_fallback=fallback,
    )
    print(model.origin)
except StoreError as error:
    print("StoreError", error.facts["required_bytes"], error.facts.get("reason"))
"""


def child(checkpoint: Path, cache: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(checkpoint), str(cache), what],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_real_file_size_limit_is_a_clear_error(checkpoint: Path, cache: Path) -> None:
    out, _ = child(checkpoint, cache, "limit").communicate()
    assert out.startswith("StoreError")
    assert "File too large" in out
    assert files(cache) == []
    out, _ = child(checkpoint, cache, "limit-fallback").communicate()
    assert out.strip() == "memory"
    assert files(cache) == []


@pytest.mark.parametrize("where", ["pwrite:1", "pwrite:5", "pwrite:16", "fsync:1", "replace:1"])
def test_a_killed_process_leaves_no_pack_and_the_next_one_cleans_up(
    where: str, checkpoint: Path, cache: Path
) -> None:
    process = child(checkpoint, cache, f"kill:{where}")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = files(cache)
    assert len(left) == 1
    assert left[0].endswith(".part")
    begin = time.perf_counter()
    model = loaded(checkpoint, cache)
    assert time.perf_counter() - begin < 5, "the lock of the dead process still holds"
    assert model.origin == "written"
    assert model.pack_path is not None
    assert files(cache) == [model.pack_path.name]
    assert content(model) == content(loaded(checkpoint, cache, cache_folder=None))


def test_two_processes_at_once_write_one_pack(
    checkpoint: Path, cache: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    processes = [child(checkpoint, cache, f"wait:{go}") for _ in range(3)]
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("go.*"))) < 3:
        assert time.monotonic() < deadline, "the children did not start"
        time.sleep(0.01)
    go.touch()
    outcomes = sorted(process.communicate()[0].strip() for process in processes)
    assert outcomes == ["mapped", "mapped", "written"]
    assert len(files(cache)) == 1


def test_sampled_windows_cover_both_ends_and_small_buffers() -> None:
    rng = np.random.default_rng(4)
    for size in (1, 64, 4096, 4097, 100_000):
        buffer = rng.integers(0, 256, size).astype(np.uint8)
        before = pack_file.sample_digest([buffer])
        for place in (0, size - 1):
            changed = buffer.copy()
            changed[place] ^= 1
            assert pack_file.sample_digest([changed]) != before
        assert pack_file.sample_digest([buffer, buffer]) != before
