"""The peer's process: what it answers, how it fails, and that it sees no module of ours.

llama-cpp-python is not installed for the tests; a stub with the functions that are called, which
counts tokens and takes time for them, stands in for it. `--vs` against the real one is measured.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qh_chat.benchmark.peer import PeerProcess, peer_file, peer_runs, peer_version
from qh_runtime.errors import SessionError
from tests.support.bench_rows import TINY_LLAMA

STUB = """
import ctypes, os, sys, time
__version__ = "9.9"
llama_token = ctypes.c_int32
llama_log_callback = lambda f: f
llama_log_set = lambda callback, data: None
llama_backend_init = lambda: None
llama_print_system_info = lambda: b"STUB = 1"
llama_model_default_params = lambda: None
llama_synchronize = lambda context: None
llama_get_memory = lambda context: context
llama_model_get_vocab = lambda model: model
llama_vocab_n_tokens = lambda vocab: 100
assert "rows" not in sys.modules and not os.path.exists(os.path.join(sys.path[0], "rows.py"))

class Params: pass

def llama_model_load_from_file(path, params):
    return os.path.exists(path) and path

def llama_context_default_params():
    return Params()

class Context:
    def __init__(self, params):
        self.size, self.used, self.threads = params.n_ctx, 0, params.n_threads

def llama_init_from_model(model, params):
    return Context(params)

def llama_set_n_threads(context, one, many):
    context.threads = one

def llama_batch_get_one(tokens, n):
    assert len(tokens) == n and all(0 <= x < 100 for x in tokens)
    return n

def llama_memory_seq_rm(context, sequence, first, last):
    context.used = first

def llama_decode(context, n):
    if os.environ.get("STUB_CRASH") and context.used > 20:
        sys.stderr.write("illegal instruction, they say\\n")
        os._exit(132)
    context.used += n
    time.sleep(n * 1e-4 / context.threads)
    return 0 if context.used <= context.size else 1
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python that has the stub."""
    (tmp_path / "llama_cpp.py").write_text(STUB, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return sys.executable


def test_the_version_of_the_package(python: str) -> None:
    assert peer_version(python) == "9.9 STUB = 1"


@pytest.mark.parametrize("python", [sys.executable, "/nowhere/python"])
def test_no_package_says_how_to_get_it(python: str) -> None:
    with pytest.raises(SessionError) as caught:
        peer_version(python)
    assert "qh-chat[gguf]" in str(caught.value.hint)
    assert "--peer-python" in str(caught.value.hint)
    assert caught.value.facts["python"] == python


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path, size = peer_file(tmp_path, TINY_LLAMA.spec, "Q4_0")
    before = path.stat()
    assert 0.5 * before.st_size < size < before.st_size
    assert peer_file(tmp_path, TINY_LLAMA.spec, "Q4_0") == (path, size)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert peer_file(tmp_path, TINY_LLAMA.spec, "Q4_K_M")[0] != path
    assert sorted(x.suffix for x in tmp_path.iterdir()) == [".gguf", ".gguf"]


def test_rates_are_those_of_the_peer(tmp_path: Path, python: str) -> None:
    with peer_runs(tmp_path, TINY_LLAMA.spec, "Q4_0", 600, python) as (process, peer):
        assert peer.name == "llama.cpp Q4_0"
        assert peer.pid == process.pid != os.getpid()
        # The stub sleeps 0.1 ms a token; a machine can only be slower.
        assert 10 < peer.decode(300, 0.01) < 10_000
        assert 10 < peer.decode(100, 0.01) < 10_000
        assert 10 < peer.prefill(520) < 10_000
        process.ask(do="threads", threads=2)
        assert 10 < peer.decode(100, 0.01) < 20_000
        # More than its cache holds: refused, and it goes on.
        with pytest.raises(SessionError, match="llama_decode"):
            peer.prefill(601)
        assert peer.decode(10, 0.001) > 0
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_crash_is_an_error_with_its_last_words(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_CRASH", "1")
    with (
        peer_runs(tmp_path, TINY_LLAMA.spec, "Q4_0", 600, python) as (_, peer),
        pytest.raises(SessionError) as caught,
    ):
        peer.decode(100, 0.01)
    assert caught.value.facts["exit_code"] == 132
    assert "they say" in str(caught.value.facts["stderr"])


def test_what_it_cannot_do_is_an_error(tmp_path: Path, python: str) -> None:
    path = str(tmp_path / "none.gguf")
    with PeerProcess(python) as process:
        with pytest.raises(SessionError, match="no model"):
            process.ask(do="decode", context=1, seconds=0.1)
        with pytest.raises(SessionError, match="cannot load"):
            process.ask(do="load", path=path, context_length=8, threads=1)
        with pytest.raises(SessionError, match="no model"):
            process.ask(do="dance")
