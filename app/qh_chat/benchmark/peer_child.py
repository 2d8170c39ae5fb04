"""The peer's half: runs llama.cpp in a process of its own and answers with rates.

Started by `peer.py` as a program, with a Python that has llama-cpp-python and maybe nothing else:
imports that package and the standard library. One JSON object a line comes in, one goes out.
No text is sampled: what is measured is llama_decode and the logits, as llama-bench does.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from typing import Any

# Tokens of one timed piece, at least and at most.
LEAST_TOKENS, MOST_TOKENS = 4, 256
BATCH_TOKENS = 512


class Peer:
    """One loaded model."""

    def __init__(self, path: str, context_length: int, threads: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        # Kept, because the library does not.
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context_length
        params.n_batch = BATCH_TOKENS
        params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        self.position = 0

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads from now on."""
        self.api.llama_set_n_threads(self.context, threads, threads)

    def advance(self, n_tokens: int) -> None:
        """Compute tokens at the next positions; returns when the last one's logits are there."""
        tokens = (self.api.llama_token * n_tokens)(
            *((7919 * (self.position + i) + 17) % self.vocab_size for i in range(n_tokens))
        )
        status = self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, n_tokens))
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")
        self.api.llama_synchronize(self.context)
        self.position += n_tokens

    def truncate(self, position: int) -> None:
        """Forget what is at this position and behind it."""
        if position < self.position:
            self.api.llama_memory_seq_rm(self.memory, 0, position, -1)
            self.position = position

    def decode(self, context: int, seconds: float) -> float:
        """Tokens per second behind so many tokens, from the median time of one."""
        self.truncate(context)
        while self.position < context:
            self.advance(min(BATCH_TOKENS, context - self.position))
        self.advance(1)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < MOST_TOKENS:
            start = time.perf_counter()
            self.advance(1)
            now = time.perf_counter()
            times.append(now - start)
            if now >= end and len(times) >= LEAST_TOKENS:
                break
        return 1 / statistics.median(times)

    def prefill(self, n_tokens: int) -> float:
        """Tokens per second of a prompt in an empty cache."""
        self.truncate(0)
        start = time.perf_counter()
        while self.position < n_tokens:
            self.advance(min(BATCH_TOKENS, n_tokens - self.position))
        return n_tokens / (time.perf_counter() - start)


def answer(peer: Peer | None, request: dict[str, Any]) -> tuple[Peer | None, dict[str, Any]]:
    """Do what a line asks for; (the peer from now on, what to reply)."""
    operation = request.pop("do")
    if operation == "load":
        made = Peer(**request)
        made.advance(1)
        info = made.api.llama_print_system_info().decode()
        return made, {"version": made.api.__version__, "system": info}
    if peer is None:
        raise RuntimeError("no model is loaded")
    if operation == "threads":
        peer.set_threads(**request)
        return peer, {}
    if operation == "decode":
        return peer, {"tokens_per_s": peer.decode(**request)}
    if operation == "prefill":
        return peer, {"tokens_per_s": peer.prefill(**request)}
    raise RuntimeError(f"unknown request {operation!r}")


def main() -> None:
    """Answer until the other side closes the pipe."""
    peer: Peer | None = None
    for line in sys.stdin:
        try:
            peer, reply = answer(peer, json.loads(line))
        except (RuntimeError, ImportError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
