"""Names to loaded models: the store of this user, joined with the runtime's loader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qh_chat import __version__
from qh_chat.paths import Paths
from qh_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from qh_runtime.hardware.profile import HardwareProfile
    from qh_runtime.loader import LoadProgress
    from qh_runtime.options import LoadOptions
    from qh_runtime.session.events import Engine
    from qh_runtime.store.layout import StoreLayout
    from qh_runtime.store.store import ModelEntry, ModelStore

__all__ = ["Models", "OnProgress"]

log = logging.getLogger(__name__)

OnProgress = Callable[["LoadProgress"], None]


@dataclass(frozen=True)
class Models:
    """Every model this user can name, and how to load one.

    Attributes:
        folders: searched for models after the store's own folder.
    """

    paths: Paths
    folders: Sequence[str] = ()

    def store(self) -> ModelStore:
        """Return the built-in models, those in the store, and those in the searched folders."""
        from qh_runtime.store.store import ModelStore

        searched = (Path(x).expanduser() for x in self.folders)
        return ModelStore(self.paths.builtin_dir, (self.paths.models_dir, *searched), self.layout())

    def layout(self) -> StoreLayout:
        """Return where pulled and imported models lie."""
        from qh_runtime.store.layout import StoreLayout

        return StoreLayout(self.paths.store_dir)

    def profile(self) -> HardwareProfile:
        """Return what this machine is now."""
        from qh_runtime.hardware.profile import probe

        return probe(self.paths.packed_dir)

    def entry(self, name: str | None) -> ModelEntry:
        """Return the model of a name or folder; None is the built-in one.

        Raises:
            ModelNotFoundError: there is none.
            CheckpointError: it is there and broken.
        """
        store = self.store()
        entry = store.resolve(name or store.default_name())
        if entry.error is not None:
            error = entry.error
            raise type(error)(
                f"model {entry.name}: {error.message}", hint=error.hint, **error.facts
            ) from error
        if entry.problem is not None:
            raise CheckpointError(
                f"model {entry.name}: {entry.problem}", path=str(entry.folder), model=entry.name
            )
        return entry

    def load(self, name: str | None, options: LoadOptions, on_progress: OnProgress) -> Engine:
        """Load a model; whatever on_progress raises comes out of here.

        Raises:
            QhError: it is not there, is broken, or does not fit.
        """
        from qh_runtime.loader import load_model

        entry = self.entry(name)
        profile = self.profile()
        memory, cpu = profile.memory, profile.cpu
        # With the loader's own line (weights, plan, instruction set): the start of a session.
        log.info(
            "qh-chat %s loads %s on %s: %s usable bytes (%s), %d threads (%s), %s",
            __version__,
            entry.name,
            cpu.name.value,
            memory.usable_bytes.value,
            memory.usable_bytes.source,
            profile.usable_threads,
            cpu.usable_threads.source,
            options,
        )
        return load_model(entry, options, profile, self.paths.packed_dir, on_progress)
