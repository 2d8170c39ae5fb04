"""What a running call leaves to other Python threads, and that threads never change a text."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from qh_kernels import isa
from qh_kernels.decoder import Decoder
from qh_kernels.sampler import Sampler
from tests.support.decoder_models import make_model

N_CALLS = 400


@pytest.fixture
def no_switches() -> Iterator[None]:
    """The interpreter takes the lock from no thread; a thread has to let go of it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(before)


def _next_token(decoder: Decoder) -> Callable[[], object]:
    sampler = Sampler(decoder.vocab_size, temperature=0.8, seed=1)
    decoder.prefill([1])
    return lambda: decoder.next_token(sampler)


CALLS: dict[str, Callable[[Decoder], Callable[[], object]]] = {
    "prefill": lambda decoder: lambda: decoder.prefill([1]),
    "forward": lambda decoder: lambda: decoder.forward([1]),
    "next_token": _next_token,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("no_switches")
def test_other_python_threads_run_during_a_call(name: str) -> None:
    """Were the lock held during a call, this thread would come back only after the last one."""
    model = make_model("llama", hidden_size=256, intermediate_size=512, vocab_size=2000)
    with model.decoder(context_length=N_CALLS + 2) as decoder:
        call = CALLS[name](decoder)
        done: list[object] = []
        enough = threading.Event()

        def run() -> None:
            while len(done) < N_CALLS and not enough.is_set():
                done.append(call())

        runner = threading.Thread(target=run)
        runner.start()
        seen = len(done)
        enough.set()
        runner.join()
    assert seen < N_CALLS


@pytest.mark.parametrize("name", ["bitnet", "llama-int4", "llama-int8", "llama"])
def test_greedy_text_is_the_same_every_time(name: str) -> None:
    """For an instruction set, whatever the number of threads and however often it is asked."""
    model = make_model(name, hidden_size=264, intermediate_size=520, vocab_size=1003)
    prompt = model.tokens(9)

    def text(threads: int, isa_name: str) -> list[int]:
        with model.decoder(threads=threads, isa=isa_name) as decoder:
            # Random models fall silent in one word; the penalty keeps the text moving.
            sampler = Sampler(decoder.vocab_size, temperature=0, presence_penalty=100.0)
            decoder.prefill(prompt)
            return [decoder.next_token(sampler) for _ in range(40)]

    for isa_name in isa.available():
        first = text(1, isa_name)
        assert len(set(first)) > 3
        for threads in (2, 2, 3):
            assert text(threads, isa_name) == first
