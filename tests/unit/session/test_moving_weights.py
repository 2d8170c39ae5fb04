"""A decoder moves to large pages between two tokens and computes the same bits."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_kernels.decoder import Decoder, DecoderWeights
from qh_kernels.errors import KernelError
from qh_runtime.architectures import decoder_shape
from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.packing import load_packed_model
from qh_runtime.session import moving_weights
from qh_runtime.session.moving_weights import WeightMover
from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint

CHANGES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "vocab_size": 300}
SPEC = spec_of(**CHANGES)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving_weights, "_FIRST_TOKENS", 1)


@pytest.fixture
def weights(tmp_path: Path) -> DecoderWeights:
    folder = write_checkpoint(tmp_path, config(**CHANGES), random_tensors(SPEC))
    model = load_packed_model(
        SPEC,
        open_checkpoint(folder),
        layout_for({}),
        pack="int4_g32",
        cache_folder=tmp_path / "packed",
        head_scan="always",
    )
    assert model is not None
    assert model.origin == "written"
    return model.weights


def decoder_of(weights: DecoderWeights) -> Decoder:
    return Decoder(decoder_shape(SPEC), weights, context_length=64, threads=1)


class Watched:
    """A decoder that counts its moves."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.moves: list[DecoderWeights] = []

    def move_weights(self, weights: DecoderWeights) -> None:
        self.moves.append(weights)
        self.decoder.move_weights(weights)


def until_moved(mover: WeightMover, watched: Watched) -> None:
    for _ in range(2000):
        mover.between_tokens()
        if watched.moves:
            return
        time.sleep(0.005)
    raise TimeoutError("not moved after 10 s")


def test_what_follows_a_move_is_what_would_have_followed(weights: DecoderWeights) -> None:
    with decoder_of(weights) as stays, decoder_of(weights) as moves:
        watched = Watched(moves)
        mover = WeightMover(watched, weights)
        for decoder in (stays, moves):
            assert decoder.prefill([1, 2, 3])
        until_moved(mover, watched)
        (moved,) = watched.moves
        assert not np.shares_memory(moved.layers[0].q.data, weights.layers[0].q.data)
        for token in (7, 8, 9):
            for decoder in (stays, moves):
                assert decoder.prefill([token])
            np.testing.assert_array_equal(stays.logits(), moves.logits())
        mover.between_tokens()
        assert len(watched.moves) == 1
        mover.stop()


def test_the_old_arrays_are_let_go(weights: DecoderWeights) -> None:
    """What the decoder reads after a move is the copy: the old bytes may change."""
    first = weights.layers[0].down
    old = replace(first, data=first.data.copy())
    layers = (replace(weights.layers[0], down=old), *weights.layers[1:])
    writable = replace(weights, layers=layers)
    with decoder_of(weights) as right, decoder_of(writable) as moves:
        watched = Watched(moves)
        until_moved(WeightMover(watched, writable), watched)
        old.data[:] = 0
        np.testing.assert_array_equal(right.forward([5, 6]), moves.forward([5, 6]))


def test_stopped_it_copies_no_further(
    weights: DecoderWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    with decoder_of(weights) as decoder:
        watched = Watched(decoder)
        mover = WeightMover(watched, weights)
        real = moving_weights.in_large_pages
        seen: list[bool] = []

        def slow(weights: DecoderWeights, threads: int, look: Any) -> DecoderWeights:
            mover._stop.wait(10)
            try:
                return real(weights, threads, look)
            except Exception:
                seen.append(True)
                raise

        monkeypatch.setattr(moving_weights, "in_large_pages", slow)
        mover.between_tokens()
        mover.stop()
        assert seen == [True]
        mover.between_tokens()
        assert not watched.moves


def test_refused_memory_leaves_the_file_mapped(
    weights: DecoderWeights, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> DecoderWeights:
        raise MemoryError("5 bytes: no memory")

    monkeypatch.setattr(moving_weights, "in_large_pages", refused)
    with decoder_of(weights) as decoder:
        watched = Watched(decoder)
        mover = WeightMover(watched, weights)
        mover.between_tokens()
        assert mover._thread is not None
        mover._thread.join()
        mover.between_tokens()
        assert not watched.moves
        assert "5 bytes: no memory" in caplog.text
        assert decoder.prefill([1])


def test_few_tokens_are_not_worth_a_copy(
    weights: DecoderWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_weights, "_FIRST_TOKENS", 3)
    with decoder_of(weights) as decoder:
        mover = WeightMover(Watched(decoder), weights)
        mover.between_tokens()
        mover.between_tokens()
        assert mover._thread is None
        mover.between_tokens()
        assert mover._thread is not None
        mover.stop()


def test_other_weights_are_refused(weights: DecoderWeights) -> None:
    dense = replace(weights, head_scan=None)
    with decoder_of(weights) as decoder, pytest.raises(KernelError, match="formats"):
        decoder.move_weights(dense)
    shorter = replace(weights, layers=weights.layers[:1])
    with decoder_of(weights) as decoder, pytest.raises(KernelError, match="layers"):
        decoder.move_weights(shorter)
