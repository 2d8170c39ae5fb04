"""The model card: what the built-in model is made of and good for, with measured numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qh_runtime.training.books import Book
from qh_runtime.training.config import ModelConfig
from qh_runtime.training.grammar import read_phrases
from qh_runtime.training.messages import Message


@dataclass(frozen=True)
class Run:
    """What the card says about the training run."""

    steps: int
    decay_steps: int
    tokens: int
    hours: float
    conversations: int
    dialogue_share: float
    late_start: int
    late_share: float
    commands: Sequence[str]
    books_bits_per_byte: float
    dialogue_bits_per_byte: float


def model_card(
    config: ModelConfig, run: Run, books: Sequence[Book], samples: Sequence[Sequence[Message]]
) -> str:
    """Return the text of README.md."""
    text = read_phrases("card.md").format(
        millions=config.parameters / 1e6,
        ternary=config.ternary_parameters / 1e6,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        theta=config.rope_theta,
        eps=config.rms_norm_eps,
        steps=run.steps,
        decay_steps=run.decay_steps,
        tokens=run.tokens / 1e6,
        hours=run.hours,
        conversations=run.conversations,
        share=run.dialogue_share,
        late_start=run.late_start,
        late_share=run.late_share,
        commands="\n".join(run.commands),
        books_bits=run.books_bits_per_byte,
        dialogue_bits=run.dialogue_bits_per_byte,
    )
    table = "\n".join(
        ["", "| Gutenberg number | book | SHA-256 of the file |", "| --- | --- | --- |"]
        + [f"| {book.number} | {book.name} | `{book.sha256}` |" for book in books]
    )
    talks = ["", "", "## Samples (greedy)", ""]
    for chat in samples:
        talks += ["```", *(f"{message.role}: {message.content}" for message in chat), "```", ""]
    licence = "\n## Licence\n\nApache-2.0, like qh-chat.\n"
    return text + table + "\n".join(talks) + licence
