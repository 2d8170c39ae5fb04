"""The training loop: legs of any length that join without a seam, and a schedule that can be ended at any step.

The learning rate is warmed up, held, and brought to zero in a last leg of its own (warm-up, stable, decay), so the
length of the run need not be known when it starts.

Source: Hu et al. 2024, "MiniCPM", section 4 (schedule); Ma et al. 2024, "The Era of 1-bit LLMs: Training Tips",
section 3 (high learning rate; no weight decay in the last phase).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from qh_runtime.training.config import ModelConfig
from qh_runtime.training.decoder import BitNetDecoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Numbers of the optimization. Learning rates are peaks."""

    batch_windows: int = 8
    matrix_learning_rate: float = 2e-3
    other_learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 150
    clip_norm: float = 1.0
    optimizer: str = "muon"
    seed: int = 20


@dataclass
class Progress:
    """Where the run stands; `decay_start` is -1 until the last leg begins."""

    step: int = 0
    decay_start: int = -1
    decay_steps: int = 0
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the decay has come to its end."""
        return self.decay_start >= 0 and self.step >= self.decay_start + self.decay_steps


def learning_rate_factor(progress: Progress, warmup_steps: int) -> float:
    """Return the share of the peak rate for the step about to be made, in [0, 1].

    The decay goes with 1 - sqrt(t), which spends most of the leg at small rates (Haegele et al. 2024, section 3).
    """
    factor = min(1.0, (progress.step + 1) / max(1, warmup_steps))
    if progress.decay_start >= 0:
        done = (progress.step - progress.decay_start) / max(1, progress.decay_steps)
        factor *= max(0.0, 1.0 - done**0.5)
    return factor


def weighted_loss(model: BitNetDecoder, tokens: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats over the weighted targets; both inputs (batch, window_tokens + 1)."""
    logits = model(tokens[:, :-1])
    losses = functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    mask = weights[:, 1:].flatten().float()
    return (losses * mask).sum() / mask.sum().clamp(min=1.0)


class Trainer:
    """A model, its optimizers and its place in the data; `save` and `load` keep all three."""

    def __init__(self, config: ModelConfig, recipe: Recipe, dtype: torch.dtype, compiled: bool) -> None:
        self.recipe = recipe
        self.model = BitNetDecoder(config, dtype)
        self.model.initialize(recipe.seed)
        self.progress = Progress()
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and n != "embed_tokens.weight"]
        others = [p for n, p in self.model.named_parameters() if p.dim() != 2 or n == "embed_tokens.weight"]
        rate, decay = recipe.matrix_learning_rate, recipe.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=recipe.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        ]
        if recipe.optimizer == "muon":
            muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            self.optimizers.append(muon)
        else:
            self.optimizers.append(
                torch.optim.AdamW(matrices, lr=rate, betas=(0.9, 0.95), weight_decay=decay, fused=True)
            )
        self.peaks = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.loss: Callable[[BitNetDecoder, Tensor, Tensor], Tensor] = (
            torch.compile(weighted_loss) if compiled else weighted_loss
        )

    def step(self, tokens: Tensor, weights: Tensor) -> float:
        """Make one update from rows (batch_windows, window_tokens + 1) and return its loss in nats per token."""
        factor = learning_rate_factor(self.progress, self.recipe.warmup_steps)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = peak * factor
            if self.progress.decay_start >= 0:
                group["weight_decay"] = 0.0
        loss = self.loss(self.model, tokens, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return float(loss.detach())

    def begin_decay(self, steps: int) -> None:
        """Make the next `steps` steps the last ones, unless the decay has already begun."""
        if self.progress.decay_start < 0:
            self.progress.decay_start, self.progress.decay_steps = self.progress.step, steps

    def state(self) -> dict[str, Any]:
        """Return everything that the next leg needs."""
        return {
            "config": self.model.config.as_dict(),
            "recipe": vars(self.recipe),
            "progress": vars(self.progress),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def save(self, path: Path) -> None:
        """Write the state so that a crash leaves either the old file or the new one."""
        temporary = path.with_suffix(".tmp")
        torch.save(self.state(), temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Take up the state of an earlier leg with the same sizes."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])


@dataclass(frozen=True)
class Rows:
    """Window rows in memory: tokens uint16 and weights uint8 (n, window_tokens + 1), and the order of use."""

    tokens: NDArray[np.uint16]
    weights: NDArray[np.uint8]
    order: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> Rows:
        """Read a file of `build_corpus`; without a stored order, rows come as they stand."""
        with np.load(path) as data:
            tokens, weights = data["tokens"], data["weights"]
            order = data["order"] if "order" in data else np.arange(len(tokens))
        return cls(tokens, weights, order)

    def batch(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """Return batch `index`: tokens int64 and weights uint8, (size, window_tokens + 1); the order wraps around."""
        chosen = self.order[np.arange(index * size, (index + 1) * size) % len(self.order)]
        return torch.from_numpy(self.tokens[chosen].astype(np.int64)), torch.from_numpy(self.weights[chosen])


def run_leg(trainer: Trainer, rows: Rows, path: Path, minutes: float, steps: int = 0, save_minutes: float = 3.0) -> None:
    """Train until the time is over, `steps` steps are made or the decay ends, and save to `path`."""
    started = saved = reported = time.monotonic()
    first = marked = trainer.progress.step
    before = trainer.progress.seconds
    size = trainer.recipe.batch_windows
    mean = 0.0
    while not trainer.progress.finished and not (steps and trainer.progress.step - first >= steps):
        loss = trainer.step(*rows.batch(trainer.progress.step, size))
        made = trainer.progress.step - first
        mean = loss if made == 1 else 0.97 * mean + 0.03 * loss
        now = time.monotonic()
        trainer.progress.seconds = before + now - started
        if now - reported > 20 or made == 1:
            rate = (trainer.progress.step - marked) * size * (rows.tokens.shape[1] - 1) / (now - reported)
            left = max(0.0, minutes * 60 - (now - started))
            logger.info("step %d, loss %.4f, %.0f tokens/s, %.0f s left", trainer.progress.step, mean, rate, left)
            reported, marked = now, trainer.progress.step
        if now - saved > save_minutes * 60:
            trainer.save(path)
            saved = time.monotonic()
        if minutes and now - started > minutes * 60:
            break
    trainer.save(path)
