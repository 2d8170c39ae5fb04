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
        "Lists built-in models and those in the models folder; broken ones with the reason.",
        arguments.add_json,
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
        "Measures read bandwidth, then tokens per second of the built-in model and of random "
        "weights in the shapes of larger models.",
        arguments.add_bench,
    ),
}
