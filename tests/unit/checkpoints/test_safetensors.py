"""The safetensors reader: what must be refused, how it says so, and what must be read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qh_runtime.checkpoints.safetensors import SafetensorsFile
from qh_runtime.errors import (
    CheckpointError,
    TruncatedCheckpointError,
    UnsupportedTensorError,
)
from tests.support.safetensors_bytes import HOSTILE, VALID, entry, file_bytes, write_file

# The goal is 1 s at most on an idle core. Work is counted in CPU time, since the suite may share
# its cores; waiting (for a pipe) in wall time.
_LIMIT_CPU_S = 5.0
_LIMIT_WALL_S = 60.0


def assert_clear(error: CheckpointError, path: Path) -> None:
    """One printable line that names the file, with the path as a fact."""
    text = str(error)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 1000
    assert path.name in text
    assert error.facts["path"] == str(path)
    assert error.hint


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_with_the_broken_rule(kind: str, tmp_path: Path) -> None:
    make, rule = HOSTILE[kind]
    path = write_file(tmp_path / "model.safetensors", make())
    begin = time.process_time()
    with pytest.raises(CheckpointError) as error:
        SafetensorsFile(path)
    assert time.process_time() - begin < _LIMIT_CPU_S
    assert_clear(error.value, path)
    assert error.value.facts["rule"] == rule
    if rule == "size":
        assert isinstance(error.value, TruncatedCheckpointError)
        assert error.value.facts["found_bytes"] == path.stat().st_size
        assert error.value.facts["expected_bytes"] > path.stat().st_size
    if rule == "dtype":
        assert isinstance(error.value, UnsupportedTensorError)
    if rule in ("dtype", "shape", "offsets", "entry", "name"):
        assert "tensor" in error.value.facts


@pytest.mark.parametrize("kind", VALID)
def test_legal_files_are_read(kind: str, tmp_path: Path) -> None:
    content, expected = VALID[kind]
    file = SafetensorsFile(write_file(tmp_path / "model.safetensors", content))
    assert file.names() == tuple(sorted(expected))
    for name, (dtype, shape) in expected.items():
        info = file.info(name)
        assert (info.dtype, info.shape) == (dtype, shape)
        view = file.read(name)
        assert view.shape == shape
        assert view.nbytes == info.nbytes
        assert not view.flags.writeable


def test_the_library_wrote_it_and_we_read_the_same(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(1)
    tensors = {
        "weights": rng.standard_normal((5, 7)).astype(np.float32),
        "half": rng.standard_normal((3,)).astype(np.float16),
        "bytes": rng.integers(0, 256, (4, 2)).astype(np.uint8),
        "long": rng.integers(-9, 9, (2, 2, 2)),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    file = SafetensorsFile(path)
    for name, expected in tensors.items():
        np.testing.assert_array_equal(file.read(name), expected)
        assert file.read(name).dtype == expected.dtype


def test_bfloat16_is_a_view_of_its_bits(tmp_path: Path) -> None:
    data = bytes.fromhex("803f 20c0")
    content = file_bytes({"a": entry([2], 0, 4, "BF16")}, data)
    file = SafetensorsFile(write_file(tmp_path / "model.safetensors", content))
    assert file.info("a").dtype == "BF16"
    assert file.read("a").tolist() == [0x3F80, 0xC020]


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    file = SafetensorsFile(write_file(tmp_path / "model.safetensors", VALID["one tensor"][0]))
    assert "a" in file
    assert "b" not in file
    for ask in (file.info, file.read):
        with pytest.raises(CheckpointError) as error:
            ask("b\x1b[2J")
        assert error.value.facts["tensor"] == "b\x1b[2J"
        assert str(error.value).isprintable()


def test_views_outlive_close_and_reading_after_it_is_refused(tmp_path: Path) -> None:
    content = file_bytes({"a": entry([2], 0, 8)}, np.array([1, 2], np.float32).tobytes())
    file = SafetensorsFile(write_file(tmp_path / "model.safetensors", content))
    view = file.read("a")
    file.close()
    assert view.tolist() == [1.0, 2.0]
    with pytest.raises(CheckpointError):
        file.read("a")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    good = write_file(tmp_path / "good.safetensors", VALID["one tensor"][0])
    bad = write_file(tmp_path / "bad.safetensors", b"nonsense" * 4)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        file = SafetensorsFile(good)
        file.read("a")
        file.close()
        del file
        with pytest.raises(CheckpointError):
            SafetensorsFile(bad)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_header_that_shrinks_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "model.safetensors", VALID["one tensor"][0])
    size = path.stat().st_size
    real = os.fstat

    def before_it_shrank(descriptor: int) -> os.stat_result:
        values = list(real(descriptor))
        values[6] = size
        return os.stat_result(values)

    os.truncate(path, 20)
    monkeypatch.setattr(os, "fstat", before_it_shrank)
    with pytest.raises(TruncatedCheckpointError) as error:
        SafetensorsFile(path)
    assert error.value.facts["found_bytes"] == 20


def test_identity_follows_the_file(tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", VALID["one tensor"][0])
    first = SafetensorsFile(path).identity()
    assert SafetensorsFile(path).identity() == first
    os.utime(path, ns=(1, 1))
    assert SafetensorsFile(path).identity() != first


@pytest.mark.parametrize(
    "what", ["folder", "pipe", "link", "dangling link", "nothing", "long name"]
)
def test_what_is_no_regular_file_is_refused_at_once(what: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(write_file(tmp_path / "real", VALID["one tensor"][0]))
    elif what == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif what == "long name":
        path = tmp_path / ("x" * 5000)
    begin = time.perf_counter()
    with pytest.raises(CheckpointError) as error:
        SafetensorsFile(path)
    assert time.perf_counter() - begin < _LIMIT_WALL_S
    assert error.value.facts["path"] == str(path)
    assert len(str(error.value)) < 1000


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device file")
def test_a_device_is_refused() -> None:
    with pytest.raises(CheckpointError):
        SafetensorsFile(Path("/dev/zero"))


_MEMORY_PROBE = """
import sys
from pathlib import Path
from qh_runtime.checkpoints.safetensors import SafetensorsFile
from qh_runtime.errors import CheckpointError

def peak_kib():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])

before = peak_kib()
try:
    SafetensorsFile(Path(sys.argv[1]))
except CheckpointError:
    print(peak_kib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "header",
    [
        b'{"' + b"a" * ((32 << 20) - 20) + b'":1}',
        b'{"a":' + b"1" * (30 << 20) + b"}",
        b"{" + b",".join(b'"%d":{}' % i for i in range(500_000)) + b"}",
        b'{"a":[' + b"[],'" * 500_000 + b"1]}",
        b"{" + b",".join(b'"%0500d":1' % i for i in range(60_000)) + b"}",
    ],
    ids=["one name", "one number", "objects", "lists", "long names"],
)
def test_refusing_takes_little_memory(header: bytes, tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", file_bytes(header))
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY_PROBE, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    # The goal is 64 MB; the last kind holds 30 MB of distinct names that all have to be compared.
    assert int(done.stdout) * 1024 < 110e6


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"<!doctype html>", "web page"),
        (b"<html><body>Sign in</body>", "web page"),
        (b"<?xml version='1.0'?><Error/>", "web server"),
        (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
        (b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(64), "PyTorch"),
        (b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x08builtins", "pickle"),
    ],
)
def test_what_lies_there_instead_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    with pytest.raises(CheckpointError) as error:
        SafetensorsFile(write_file(tmp_path / "model.safetensors", content))
    assert word in str(error.value)
    assert error.value.facts["rule"] == "header length"
