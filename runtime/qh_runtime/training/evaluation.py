"""Held-out quality of the trained model in bits per byte, which do not depend on the vocabulary."""

from __future__ import annotations

import math

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from qh_runtime.training.decoder import BitNetDecoder
from qh_runtime.training.rows import Rows


@torch.no_grad()
def bits_per_byte(model: BitNetDecoder, rows: Rows, tokenizer: Tokenizer, batch: int = 8) -> float:
    """Return the mean bits per UTF-8 byte of the weighted targets.

    Special tokens count with their bits but not with bytes: the model must also know when to stop.
    """
    nats, count = 0.0, 0
    for start in range(0, len(rows.tokens), batch):
        tokens = torch.from_numpy(rows.tokens[start : start + batch].astype("int64"))
        mask = torch.from_numpy(rows.weights[start : start + batch])[:, 1:].flatten().float()
        targets = tokens[:, 1:].flatten()
        losses = functional.cross_entropy(
            model(tokens[:, :-1]).flatten(0, 1).float(), targets, reduction="none"
        )
        nats += float((losses * mask).sum())
        learned = targets[mask > 0].tolist()
        count += len(tokenizer.decode(learned, skip_special_tokens=True).encode("utf-8"))
    return nats / math.log(2) / max(1, count)
