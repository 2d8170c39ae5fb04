"""The commands of `qh-chat`, one file each; this table is the only list of them.

A command's arguments are declared without loading it: `--version` and `--help` stay fast.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qh_chat.commands import arguments
from qh_chat.commands.context import Context

__all__ = ["COMMANDS", "Command"]

Run = Callable[[argparse.Namespace, Context], int]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        module: file in this folder whose `run` does the work.
        add_arguments: declares its options on its parser.
    """

    module: str
    summary: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]

    def load(self) -> Run:
        """Import the command and return its `run(args, context) -> exit code`."""
        run: Run = importlib.import_module(f"qh_chat.commands.{self.module}").run
        return run


COMMANDS: Mapping[str, Command] = {
    "chat": Command(
        "chat",
        "open the app (also without a command)",
        "Opens the app: conversations on the left, answers as they are written.",
        arguments.add_chat,
    ),
    "run": Command(
        "run",
        "answer one prompt on standard output",
        "Streams one answer to standard output; everything else goes to standard error. A terminal "
        "gets text without control characters, a pipe the exact text as UTF-8.",
        arguments.add_run,
    ),
    "probe": Command(
        "probe",
        "show what this machine is",
        "Shows memory, processors, instruction sets, graphics cards and disk, each with where the "
        "fact came from.",
        arguments.add_json,
    ),
    "ls": Command(
        "ls",
        "list the models that can be named",
        "Lists built-in models, pulled and imported ones, and those in the models folder; broken "
        "and incomplete ones with the reason.",
        arguments.add_json,
    ),
    "pull": Command(
        "pull",
        "fetch a model from the hub",
        "Fetches a model: looks at its small files and headers first, shows a card and asks. What "
        "arrived is kept at any interruption, and the same command goes on.",
        arguments.add_pull,
    ),
    "import": Command(
        "import_",
        "copy a model from a folder, a stick or a hub cache",
        "Copies a model that lies on this machine into the store, after the checks of a pull.",
        arguments.add_import,
    ),
    "show": Command(
        "show",
        "show one model: where it is from, its files, whether it fits",
        "Shows licence, commit, files and sizes of a model, and the plan of loading it now.",
        arguments.add_show,
    ),
    "verify": Command(
        "verify",
        "check every byte of the stored models",
        "Reads every file of the named models, or of all, from the disk and compares it with its "
        "SHA-256. --repair fetches what is damaged and nothing else.",
        arguments.add_verify,
    ),
    "du": Command(
        "du",
        "show what models take on the disk",
        "Shows what each model takes, what it shares, and what removing it would free.",
        arguments.add_json,
    ),
    "rm": Command(
        "rm",
        "remove a model",
        "Removes a model with everything that no other model needs; says first what is freed.",
        arguments.add_rm,
    ),
    "prune": Command(
        "prune",
        "remove what no model needs",
        "Removes files without a model, abandoned parts, temporary files and packed weights whose "
        "model is gone.",
        arguments.add_prune,
    ),
    "doctor": Command(
        "doctor",
        "check this installation, ready to paste into a report",
        "Versions, chosen instruction set and why, self-test of every kernel, paths, and the plan "
        "of the default model. Your name and home folder are left out.",
        arguments.add_json,
    ),
    "bench": Command(
        "bench",
        "measure this machine's speed",
        "Measures read bandwidth and multiply-adds per second, then how near to them the built-in "
        "model and random weights in the shapes of larger models come, and a peer if you wish.",
        arguments.add_bench,
    ),
}
