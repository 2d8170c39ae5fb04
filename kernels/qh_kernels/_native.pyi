"""The C++ extension (kernels/src/bind). Private: use the wrappers in qh_kernels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Array = NDArray[Any]

# (data, rows, cols, format, bias)
LinearParts = tuple[NDArray[np.uint8], int, int, str, F32 | None]
# q, k, v, o, gate, up, down; attention_norm, mlp_norm, q_norm, k_norm, attention_sub_norm,
# mlp_sub_norm; sliding_window
LayerParts = tuple[
    LinearParts,
    LinearParts,
    LinearParts,
    LinearParts,
    LinearParts,
    LinearParts,
    LinearParts,
    F32,
    F32,
    F32 | None,
    F32 | None,
    F32 | None,
    F32 | None,
    int,
]
# hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim, vocab_size,
# number of layers
Sizes = tuple[int, int, int, int, int, int, int]

# bind_kernels.cpp

def available_isas() -> list[str]: ...
def best_isa() -> str: ...
def table_name(isa: str, /) -> str: ...
def format_names() -> list[str]: ...
def format_nbytes(format: str, rows: int, cols: int, /) -> int: ...
def build_info() -> dict[str, str]: ...
def linear_quantized(
    isa: str,
    format: str,
    data: Array,
    rows: int,
    cols: int,
    codes: Array,
    scales: Array,
    sums: Array,
    out: Array,
    row_begin: int,
    row_end: int,
    /,
) -> None: ...
def linear_f32(
    isa: str,
    format: str,
    data: Array,
    rows: int,
    cols: int,
    x: Array,
    out: Array,
    row_begin: int,
    row_end: int,
    /,
) -> None: ...
def unpack_row(
    isa: str, format: str, data: Array, rows: int, cols: int, row: int, out: Array, /
) -> None: ...
def rms_norm(isa: str, x: Array, weight: Array, eps: float, out: Array, /) -> None: ...
def add(isa: str, x: Array, y: Array, /) -> None: ...
def gated(isa: str, activation: str, gate: Array, up: Array, out: Array, /) -> None: ...
def rope(isa: str, x: Array, cos: Array, sin: Array, /) -> None: ...
def quantize_token(isa: str, x: Array, codes: Array, scales: Array, sums: Array, /) -> None: ...
def quantize_groups(isa: str, x: Array, codes: Array, scales: Array, sums: Array, /) -> None: ...
def store_kv(
    isa: str, kv_type: str, position: int, key: Array, value: Array, data: Array, /
) -> None: ...
def attention(
    isa: str,
    kv_type: str,
    q: Array,
    data: Array,
    first: int,
    last: int,
    scale: float,
    out: Array,
    /,
) -> None: ...

# bind_bench.cpp

class ReadBench:
    def __init__(self, n_bytes: int, /) -> None: ...
    def measure(self, n_bytes: int, threads: int, seconds: float, /) -> float: ...

def mac_peak_names() -> list[str]: ...
def measure_mac_peak(name: str, threads: int, seconds: float, /) -> float: ...
def prefetch_distance() -> int: ...
def set_prefetch_distance(n_bytes: int, /) -> None: ...
def bench_linear(
    isa: str,
    format: str,
    rows: int,
    cols: int,
    n_tokens: int,
    threads: int,
    seconds: float,
    working_set_bytes: int,
    /,
) -> tuple[int, float]: ...
def bench_attention(
    isa: str,
    kv_type: str,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    positions: int,
    threads: int,
    seconds: float,
    working_set_bytes: int,
    /,
) -> tuple[int, float, int]: ...

# bind_sampler.cpp

class Sampler:
    def __init__(
        self,
        vocab_size: int,
        allowed_vocab: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        penalty_window: int,
        seed: int,
    ) -> None: ...
    def observe(self, tokens: NDArray[np.int32]) -> None: ...
    def sample(self, logits: F32) -> int: ...

# bind_mapped_files.cpp

def watch_mapping(begin: int, nbytes: int, /) -> int: ...
def unwatch_mapping(number: int, /) -> None: ...
def mapping_is_lost(number: int, /) -> bool: ...
def lost_mappings() -> int: ...

# bind_decoder.cpp

def decoder_bytes(
    sizes: Sizes, context_length: int, threads: int, kv_type: str, batch_tokens: int
) -> tuple[int, int]: ...

class Decoder:
    def __init__(
        self,
        isa: str,
        sizes: Sizes,
        rms_norm_eps: float,
        activation: str,
        inv_freq: F32,
        embedding: LinearParts,
        head: LinearParts,
        head_scan: LinearParts | None,
        final_norm: F32,
        layers: list[LayerParts],
        context_length: int,
        threads: int,
        kv_type: str,
        exact: bool,
        batch_tokens: int,
        trace: bool,
    ) -> None: ...
    def move_weights(
        self,
        embedding: LinearParts,
        head: LinearParts,
        head_scan: LinearParts | None,
        final_norm: F32,
        layers: list[LayerParts],
    ) -> None: ...
    def prefill(self, tokens: NDArray[np.int32]) -> int: ...
    def forward(self, tokens: NDArray[np.int32], logits: F32) -> int: ...
    def next_token(self, sampler: Sampler) -> int: ...
    def commit_pending(self) -> int: ...
    def require_logits(self) -> int: ...
    def logits(self) -> F32: ...
    def trace(self) -> list[tuple[int, str, bool, NDArray[np.int8], F32]]: ...
    def truncate(self, position: int) -> None: ...
    def linear_rate(self, n_tokens: int, seconds: float) -> tuple[int, float]: ...
    def fill_cache(self, end: int) -> None: ...
    def time_linears(self, on: bool) -> None: ...
    def linear_seconds(self) -> float: ...
    def cancel(self) -> None: ...
    def clear_cancel(self) -> None: ...
    def bytes(self) -> tuple[int, int]: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def has_last(self) -> bool: ...
    @property
    def non_finite_position(self) -> int: ...
