"""`qh-chat`: opens the app. The only command that loads Textual."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from qh_chat.app import QhChatApp
from qh_chat.commands.context import Context
from qh_chat.engine import LoadStep, ModelChoice
from qh_chat.loading import Models
from qh_runtime.loader import LoadProgress
from qh_runtime.options import LoadOptions
from qh_runtime.session.events import Engine
from qh_runtime.store.entry import ModelEntry

__all__ = ["StoreModels", "run"]


@dataclasses.dataclass
class StoreModels:
    """The `ModelSource` of the app over this user's models.

    Attributes:
        force: load although the plan says that a model does not fit.
    """

    models: Models
    force: bool = False

    @property
    def default(self) -> str:
        """Name of the built-in model."""
        return self.models.store().default_name()

    def list(self) -> Sequence[ModelChoice]:
        """Every model that can be named."""
        return [_choice(x) for x in self.models.store().list()]

    def search(self, folders: Sequence[str]) -> None:
        """Look for models in these folders instead of the ones before."""
        self.models = dataclasses.replace(self.models, folders=tuple(folders))

    def load(
        self, name: str, options: LoadOptions, on_progress: Callable[[LoadStep], None]
    ) -> Engine:
        """Load one; whatever on_progress raises comes out of here."""

        def step(progress: LoadProgress) -> None:
            on_progress(LoadStep(progress.stage, progress.done_bytes, progress.total_bytes))

        chosen = dataclasses.replace(options, force=options.force or self.force)
        return self.models.load(name, chosen, step)


def _choice(entry: ModelEntry) -> ModelChoice:
    manifest = entry.manifest
    goes_on: Literal["", "pull", "import"] = ""
    if manifest is not None and manifest.state == "pulling":
        goes_on = "pull" if manifest.origin == "hub" else "import"
    return ModelChoice(
        name=entry.name,
        where="built in" if entry.origin == "built-in" else str(entry.folder),
        model_type=entry.model_type,
        format=entry.format,
        file_bytes=entry.file_bytes,
        problem=entry.problem,
        goes_on=goes_on,
        done_bytes=entry.done_bytes if goes_on else entry.file_bytes,
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """Open the app; return its exit code."""
    # Textual reads standard input and draws on standard error.
    if not all(x.isatty() for x in (sys.stdin, sys.stdout, sys.stderr)):
        context.usage_error("the app needs a terminal; use `qh-chat run` in pipes and scripts")
    # Windows has no TERM; its terminal can do what is needed.
    if sys.platform != "win32" and context.environment.get("TERM", "dumb") in ("dumb", "unknown"):
        context.usage_error("this terminal cannot place its cursor (TERM); use `qh-chat run`")
    overrides = {
        "models.threads": getattr(args, "threads", None),
        "models.context_length": getattr(args, "context", None),
        "models.pack": getattr(args, "pack", None),
        "models.kv_cache": getattr(args, "kv", None),
        "models.exact": True if getattr(args, "exact", False) else None,
    }
    settings = context.settings(overrides)
    app = QhChatApp(
        settings,
        context.paths.places,
        StoreModels(context.models(settings), getattr(args, "force", False)),
        context.shelf(),
        model=getattr(args, "model", None),
    )
    code = app.run()
    return code or app.return_code or 0
