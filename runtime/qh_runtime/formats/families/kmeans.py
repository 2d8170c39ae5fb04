"""Residual codebooks of vectors by k-means: each codebook quantizes what those before left over.

Not AQLM's optimizer, which fits codes and codebooks to a layer's outputs: a plain start of it.
Source: Chen et al. 2010, Approximate nearest neighbor search by residual vector quantization.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["residual_codebooks"]

F32 = NDArray[np.float32]

_SEED = 20261124
_ROUNDS = 3
# Vectors that centres are fitted to, per centre.
_SAMPLES = 64
# Elements of a distance matrix at a time: 64 MiB.
_BLOCK = 1 << 24


def residual_codebooks(
    vectors: F32, n_codebooks: int, size: int
) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """Return (codes (V, M), codebooks (M, size, G)) of vectors (V, G).

    The sum of the chosen entries is never further from a vector than zero is: entry 0 of every
    codebook is zero. At most size - 1 different vectors are held exactly by the first codebook.
    """
    left = vectors.astype(np.float64)
    codes = np.zeros((len(vectors), n_codebooks), np.uint16)
    books = np.zeros((n_codebooks, size, vectors.shape[1]))
    for m in range(n_codebooks):
        unique, place = np.unique(left, axis=0, return_inverse=True)
        if len(unique) < size:
            books[m, 1 : 1 + len(unique)] = unique
            codes[:, m] = 1 + place.reshape(-1)
            break
        books[m, 1:] = _centres(unique, size - 1)
        codes[:, m] = nearest(left, books[m])
        left = left - books[m][codes[:, m]]
    return codes, books


def nearest(vectors: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.intp]:
    """The index of the nearest centre (C, G) of each vector (V, G)."""
    found = np.empty(len(vectors), np.intp)
    half_norms = ((centres**2).sum(axis=1) / 2).astype(np.float32)
    single = vectors.astype(np.float32)
    step = max(1, _BLOCK // len(centres))
    for begin in range(0, len(vectors), step):
        scores = single[begin : begin + step] @ centres.T.astype(np.float32) - half_norms
        found[begin : begin + step] = scores.argmax(axis=1)
    # What rounding of the distances decided must not be worse than zero, which is centre 0.
    distance = ((vectors - centres[found]) ** 2).sum(axis=1)
    return np.where(distance <= (vectors**2).sum(axis=1), found, 0)


def _centres(unique: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(_SEED)
    sample = unique
    if len(unique) > _SAMPLES * count:
        sample = unique[rng.choice(len(unique), _SAMPLES * count, replace=False)]
    centres = sample[rng.choice(len(sample), count, replace=False)]
    for _ in range(_ROUNDS):
        owner = nearest(sample, np.concatenate([np.zeros((1, centres.shape[1])), centres])) - 1
        kept = owner >= 0
        sums = np.zeros_like(centres)
        np.add.at(sums, owner[kept], sample[kept])
        counts = np.bincount(owner[kept], minlength=count)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return centres
