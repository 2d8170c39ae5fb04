"""Command line: `python -m qh_runtime.training --text BOOKS --out FOLDER --minutes N [--resume]
[--decay-steps N]`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from qh_runtime.errors import QhError
from qh_runtime.training.books import read_books
from qh_runtime.training.config import ModelConfig
from qh_runtime.training.corpus import CorpusPlan, build_corpus
from qh_runtime.training.dialogue import conversation
from qh_runtime.training.leg import work
from qh_runtime.training.trainer import Recipe
from qh_runtime.training.vocabulary import train_vocabulary

logger = logging.getLogger("qh_runtime.training")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="python -m qh_runtime.training", description="Train the built-in model."
    )
    parser.add_argument(
        "--text",
        type=Path,
        required=True,
        help="folder of Project Gutenberg files, title_number.txt",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="working folder for corpus, tokenizer and training state",
    )
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="length of this leg; 0 = no limit"
    )
    parser.add_argument("--steps", type=int, default=0, help="steps of this leg; 0 = no limit")
    parser.add_argument("--resume", action="store_true", help="go on from the saved state in --out")
    parser.add_argument(
        "--late-texts",
        action="store_true",
        help="from now on mostly dialogues and little prose",
    )
    parser.add_argument(
        "--decay-steps",
        type=int,
        default=0,
        help="bring the learning rate to zero over so many steps",
    )
    parser.add_argument(
        "--export", type=Path, help="write the checkpoint into this folder after the leg"
    )
    parser.add_argument("--learning-rate", type=float, default=Recipe.matrix_learning_rate)
    parser.add_argument("--batch-windows", type=int, default=Recipe.batch_windows)
    parser.add_argument(
        "--echo-rows", type=int, default=0, help="rows of each batch that teach copying"
    )
    parser.add_argument("--processes", type=int, default=2, help="processes that share a batch")
    parser.add_argument("--threads", type=int, default=2, help="threads if there is one process")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace, config: ModelConfig) -> None:
    """Put tokenizer and corpus into --out unless they are there."""
    options.out.mkdir(parents=True, exist_ok=True)
    vocabulary = options.out / "tokenizer.json"
    if vocabulary.exists() and (options.out / "held_dialogue.npz").exists():
        return
    books = read_books(options.text)
    logger.info(
        "%d books, %d characters", len(books), sum(len(p) for b in books for p in b.training)
    )
    chats = (m.content for i in range(30_000) for m in conversation(i) if m.role == "assistant")
    tokenizer = train_vocabulary(
        (*(p for b in books for p in b.training), *chats), config.vocab_size
    )
    tokenizer.save(str(vocabulary))
    build_corpus(options.out, tokenizer, books, CorpusPlan())


def main(arguments: list[str]) -> int:
    """Prepare the texts, run one leg and return the exit status."""
    options = parse(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        prepare(options, ModelConfig())
        (options.out / "meeting").unlink(missing_ok=True)
        if options.processes > 1:
            torch.multiprocessing.spawn(work, (options,), nprocs=options.processes)
        else:
            work(0, options)
    except QhError as error:
        logger.error("%s", error)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
