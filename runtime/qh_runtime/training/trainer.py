"""The training loop: legs of any length that join without a seam, and a schedule that can be ended
at any step.

The learning rate is warmed up, held, and brought to zero in a last leg of its own (warm-up, stable,
decay), so the length of the run need not be known when it starts.

Source: Hu et al. 2024, "MiniCPM", section 4 (schedule); Ma et al. 2024, "The Era of 1-bit LLMs:
Training Tips", section 3 (high learning rate; no weight decay in the last phase).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qh_runtime.errors import QhError
from qh_runtime.training.config import ModelConfig
from qh_runtime.training.decoder import BitNetDecoder
from qh_runtime.training.echo import echo_rows
from qh_runtime.training.rows import Rows
from qh_runtime.training.team import Team

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
    #: So many rows of each batch are replaced by rows that teach copying (see echo.py).
    echo_rows: int = 0
    seed: int = 20


@dataclass
class Progress:
    """Where the run stands; `late_start` and `decay_start` are -1 until those phases begin."""

    step: int = 0
    late_start: int = -1
    decay_start: int = -1
    decay_steps: int = 0
    seconds: float = 0.0
    #: (step, peak matrix learning rate, echo rows) wherever a leg began with other ones.
    changes: list[tuple[int, float, int]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the decay has come to its end."""
        return self.decay_start >= 0 and self.step >= self.decay_start + self.decay_steps


def learning_rate_factor(progress: Progress, warmup_steps: int) -> float:
    """Return the share of the peak rate for the step about to be made, in [0, 1].

    The decay goes with 1 - sqrt(t), which spends most of the leg at small rates (Haegele et al.
    2024, section 3).
    """
    factor = min(1.0, (progress.step + 1) / max(1, warmup_steps))
    if progress.decay_start >= 0:
        done = (progress.step - progress.decay_start) / max(1, progress.decay_steps)
        factor *= max(0.0, 1.0 - done**0.5)
    return factor


def weighted_loss(model: BitNetDecoder, tokens: Tensor, weights: Tensor, total: Tensor) -> Tensor:
    """Return the cross-entropy in nats summed over the weighted targets and divided by `total`.

    Both inputs are (batch, window_tokens + 1); `total` is the sum of weights over the whole batch,
    of which other processes may hold a part.
    """
    logits = model(tokens[:, :-1])
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
    )
    return (losses * weights[:, 1:].flatten().float()).sum() / total


class Trainer:
    """A model, its optimizers and its place in the data; `state` and `load` keep all three.

    In a team every process holds the whole model. The matrices are dealt out for the costly part of
    Muon, its orthogonalization, and shared again after the step.
    """

    def __init__(
        self,
        config: ModelConfig,
        recipe: Recipe,
        dtype: torch.dtype,
        compiled: bool,
        team: Team | None = None,
    ) -> None:
        self.recipe = recipe
        self.team = team or Team()
        self.model = BitNetDecoder(config, dtype)
        self.model.initialize(recipe.seed)
        self.progress = Progress()
        named = dict(self.model.named_parameters())
        self.matrices = {
            n: p for n, p in named.items() if p.dim() == 2 and n != "embed_tokens.weight"
        }
        others = [p for n, p in named.items() if n not in self.matrices]
        self.adam = torch.optim.AdamW(
            others,
            lr=recipe.other_learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        )
        self.muon = torch.optim.Muon(
            [p for i, p in enumerate(self.matrices.values()) if self.team.owns(i)],
            lr=recipe.matrix_learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self.loss: Callable[[BitNetDecoder, Tensor, Tensor, Tensor], Tensor] = (
            torch.compile(weighted_loss) if compiled else weighted_loss
        )

    def step(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Make one update from rows (batch_windows, window_tokens + 1); return its loss in nats.

        The loss is this process's part of it, a float32 scalar.
        """
        factor = learning_rate_factor(self.progress, self.recipe.warmup_steps)
        self.adam.param_groups[0]["lr"] = self.recipe.other_learning_rate * factor
        self.muon.param_groups[0]["lr"] = self.recipe.matrix_learning_rate * factor
        if self.progress.decay_start >= 0:
            self.muon.param_groups[0]["weight_decay"] = 0.0
        total = weights[:, 1:].sum().float().clamp(min=1.0)
        mine = slice(self.team.rank, None, self.team.size)
        loss = self.loss(self.model, tokens[mine], weights[mine], total)
        loss.backward()
        self.team.add_up([p.grad for p in self.model.parameters()])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in (self.adam, self.muon):
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.team.share(list(self.matrices.values()))
        self.progress.step += 1
        return loss.detach()

    def begin_decay(self, steps: int) -> None:
        """Make the next `steps` steps the last ones, unless the decay has already begun."""
        if self.progress.decay_start < 0:
            self.progress.decay_start, self.progress.decay_steps = self.progress.step, steps

    def begin_late_texts(self) -> None:
        """Take the rows from now on from the late order, unless that has already begun."""
        if self.progress.late_start < 0:
            self.progress.late_start = self.progress.step

    def state(self) -> dict[str, Any]:
        """Return everything that the next leg needs; every process of a team must call this."""
        momentum = {name: torch.zeros_like(p) for name, p in self.matrices.items()}
        for name, parameter in self.matrices.items():
            kept = self.muon.state.get(parameter)
            if kept:
                momentum[name].copy_(kept["momentum_buffer"])
        self.team.share(list(momentum.values()))
        return {
            "config": self.model.config.as_dict(),
            "recipe": asdict(self.recipe),
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "adam": self.adam.state_dict(),
            "momentum": momentum,
        }

    def save(self, path: Path) -> None:
        """Write the state so that a crash leaves either the old file or the new one."""
        state = self.state()
        if self.team.rank == 0:
            temporary = path.with_suffix(".tmp")
            torch.save(state, temporary)
            os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Take up the state of an earlier leg with the same sizes, of a team of any size."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        expected, found = self.model.config.as_dict(), state["config"]
        if found != expected:
            raise QhError(
                f"{path}: expected sizes {expected}, found {found}",
                hint="train the other sizes in a folder of their own",
                path=str(path),
            )
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.progress = Progress(**state["progress"])
        if self.progress.step == 0:
            return
        for index, (name, parameter) in enumerate(self.matrices.items()):
            if self.team.owns(index):
                self.muon.state[parameter]["momentum_buffer"] = state["momentum"][name].clone()


def run_leg(
    trainer: Trainer,
    rows: Rows,
    path: Path,
    minutes: float = 0.0,
    steps: int = 0,
    save_minutes: float = 3.0,
) -> None:
    """Train until the time is over, `steps` steps are made or the decay ends, and save to `path`.

    Zero minutes or steps mean no such limit. Process 0 of a team reads the clock for all of them.
    """
    started = saved = reported = time.monotonic()
    first = marked = trainer.progress.step
    changes, echoes = trainer.progress.changes, trainer.recipe.echo_rows
    setting = (trainer.recipe.matrix_learning_rate, echoes)
    if not changes or tuple(changes[-1][1:]) != setting:
        changes.append((first, *setting))
    before = trainer.progress.seconds
    size = trainer.recipe.batch_windows
    late_rows = rows.late()
    vocab_size = trainer.model.config.vocab_size
    mean = 0.0
    over = False
    while not over and not trainer.progress.finished:
        late = trainer.progress.late_start
        index = trainer.progress.step - max(0, late)
        tokens, weights = (rows if late < 0 else late_rows).batch(index, size)
        if echoes:
            made_rows = echo_rows(trainer.progress.step, echoes, vocab_size, tokens.shape[1])
            tokens[-echoes:], weights[-echoes:] = made_rows
        loss = trainer.step(tokens, weights)
        now = time.monotonic()
        made = trainer.progress.step - first
        clock = torch.zeros(3)
        clock[0] = loss
        if trainer.team.rank == 0:
            clock[1] = float(0 < steps <= made or 0 < minutes * 60 < now - started)
            clock[2] = float(now - saved > save_minutes * 60)
        trainer.team.add_up([clock])
        over = bool(clock[1])
        trainer.progress.seconds = before + now - started
        mean = float(clock[0]) if made == 1 else 0.97 * mean + 0.03 * float(clock[0])
        if trainer.team.rank == 0 and (now - reported > 20 or made == 1):
            trained = (trainer.progress.step - marked) * size * (rows.tokens.shape[1] - 1)
            left = max(0.0, minutes * 60 - (now - started))
            logger.info(
                "step %d, loss %.4f, %.0f tokens/s, %.0f s left",
                trainer.progress.step,
                mean,
                trained / (now - reported),
                left,
            )
            reported, marked = now, trainer.progress.step
        if clock[2]:
            trainer.save(path)
            saved = time.monotonic()
    trainer.save(path)
