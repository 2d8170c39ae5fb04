"""One leg of training as one process of a team runs it, then evaluation and export."""

from __future__ import annotations

import argparse
import logging
import sys

import torch
from tokenizers import Tokenizer

from qh_runtime.training.books import read_books
from qh_runtime.training.card import Run, model_card
from qh_runtime.training.config import ModelConfig
from qh_runtime.training.corpus import CorpusPlan
from qh_runtime.training.evaluation import bits_per_byte
from qh_runtime.training.export import as_exported, export
from qh_runtime.training.rows import Rows, late_dialogue_share
from qh_runtime.training.sample import converse
from qh_runtime.training.team import Team
from qh_runtime.training.trainer import Progress, Recipe, Trainer, run_leg

#: User turns of the samples on the card, chosen before any reply to them was seen.
SAMPLE_TURNS = (
    ("hello", "who are you?"),
    ("Tell me a story about a dog.", "what was the name of the dog?", "make it shorter"),
    ("what is the opposite of hot?", "what is the capital of France?"),
)

logger = logging.getLogger(__name__)


def work(rank: int, options: argparse.Namespace) -> None:
    """Run one leg as process `rank` of the team; process 0 reports, evaluates and exports."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1 if options.processes > 1 else options.threads)
    team = Team(rank, options.processes, options.out.resolve() / "meeting")
    config = ModelConfig()
    recipe = Recipe(
        matrix_learning_rate=options.learning_rate,
        batch_windows=options.batch_windows,
        echo_rows=options.echo_rows,
    )
    trainer = Trainer(config, recipe, torch.bfloat16, compiled=True, team=team)
    state = options.out / "state.pt"
    if options.resume:
        trainer.load(state)
    if options.late_texts:
        trainer.begin_late_texts()
    if options.decay_steps:
        trainer.begin_decay(options.decay_steps)
    rows = Rows.read(options.out / "train.npz")
    if options.minutes or options.steps or options.decay_steps:
        run_leg(trainer, rows, state, options.minutes, options.steps)
    team.leave()
    if rank > 0:
        return
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    if options.export:
        export(trainer.model, tokenizer, options.export)
        describe(trainer, tokenizer, options)


def commands(progress: Progress) -> list[str]:
    """Return the command lines that make this run: one for each phase and learning rate."""
    base = "python -m qh_runtime.training --text BOOKS --out WORK"
    marks = {change[0] for change in progress.changes}
    marks |= {progress.late_start, progress.decay_start}
    starts = sorted(step for step in marks if step >= 0)
    lines = []
    for start, end in zip(starts, [*starts[1:], progress.step], strict=True):
        _, rate, echoes = [change for change in progress.changes if change[0] <= start][-1]
        line = f"{base} --learning-rate {rate} --echo-rows {echoes}"
        line += " --resume" if start else ""
        if start == progress.late_start:
            line += " --late-texts"
        if start == progress.decay_start:
            line += f" --decay-steps {progress.decay_steps}"
        if not (start == progress.decay_start and progress.finished):
            line += f" --steps {end - start}"
        if end == progress.step:
            line += " --export assets/models/qh-toy"
        lines.append(line)
    return lines


def describe(trainer: Trainer, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    """Measure the exported values on the held-out texts and write the model card beside them."""
    torch.set_num_threads(options.threads)
    exported = as_exported(trainer.model)
    bits = {}
    for name in ("held_books", "held_dialogue"):
        bits[name] = bits_per_byte(exported, Rows.read(options.out / f"{name}.npz"), tokenizer)
        logger.info("%s: %.4f bits per byte", name, bits[name])
    progress, recipe, plan = trainer.progress, trainer.recipe, CorpusPlan()
    run = Run(
        steps=progress.step,
        decay_steps=progress.decay_steps,
        tokens=progress.step * recipe.batch_windows * plan.window_tokens,
        hours=progress.seconds / 3600,
        conversations=plan.conversations,
        dialogue_share=plan.dialogue_share,
        late_start=progress.late_start,
        late_share=late_dialogue_share(plan.dialogue_share),
        commands=commands(progress),
        books_bits_per_byte=bits["held_books"],
        dialogue_bits_per_byte=bits["held_dialogue"],
    )
    samples = [converse(exported, tokenizer, turns) for turns in SAMPLE_TURNS]
    card = model_card(trainer.model.config, run, read_books(options.text), samples)
    (options.export / "README.md").write_text(card, encoding="utf-8")
