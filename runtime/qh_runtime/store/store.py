"""ModelStore: names to folders. Downloads are no part of it; it opens no socket."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import ModelNotFoundError
from qh_runtime.store.entry import ModelEntry, Origin, describe_folder

__all__ = ["ModelEntry", "ModelStore"]

# A hub name: one slash, letters, digits, '-', '_' and '.' on both sides.
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
# Entries of one folder that are looked at; a models folder with more is something else.
_MAX_ENTRIES = 4096


class ModelStore:
    """The built-in models and those in the store folders.

    Args:
        builtin_dir: holds one folder per built-in model; None where there is none.
        model_dirs: hold one folder per model, earlier ones first where names repeat.
    """

    def __init__(self, builtin_dir: Path | None, model_dirs: Sequence[Path]) -> None:
        self._builtin_dir = builtin_dir
        self._model_dirs = tuple(model_dirs)

    @property
    def model_dirs(self) -> tuple[Path, ...]:
        """The store folders; they need not exist."""
        return self._model_dirs

    def default_name(self) -> str:
        """Return the name of the model that is used when none is asked for.

        Raises:
            ModelNotFoundError: no built-in model is installed.
        """
        for name, _, origin in self._folders():
            if origin == "built-in":
                return name
        raise ModelNotFoundError(
            "built-in model: expected one beside the program, found none",
            hint="reinstall qh-chat, or name a folder with -m",
            name="",
            known=(),
        )

    def list(self) -> tuple[ModelEntry, ...]:
        """Return every model that can be named, built-in ones first; broken ones with a problem."""
        return tuple(describe_folder(*found) for found in self._folders())

    def resolve(self, name_or_path: str) -> ModelEntry:
        """Return the model of a name, or of a folder in Hugging Face layout.

        A plain word is a name first and a folder second; anything with a separator is a folder.

        Raises:
            ModelNotFoundError: neither. Facts: name, known, near.
        """
        folders = list(self._folders())
        for name, folder, origin in folders:
            if name == name_or_path:
                return describe_folder(name, folder, origin)
        path = self._existing_folder(name_or_path)
        if path is not None:
            return describe_folder(_shown_name(path.absolute().name), path, "folder")
        raise self._not_found(name_or_path, tuple(name for name, _, _ in folders))

    def _existing_folder(self, text: str) -> Path | None:
        if not text or "\0" in text:
            return None
        try:
            path = Path(text).expanduser()
            return path if path.is_dir() else None
        except (OSError, RuntimeError, ValueError):
            return None

    def _folders(self) -> Iterator[tuple[str, Path, Origin]]:
        """(name, folder, origin) of every model, each name once."""
        seen: set[str] = set()
        places: list[tuple[Path, Origin]] = []
        if self._builtin_dir is not None:
            places.append((self._builtin_dir, "built-in"))
        places.extend((folder, "store") for folder in self._model_dirs)
        for place, origin in places:
            for folder in _model_folders(place):
                name = _shown_name(folder.name)
                if name not in seen:
                    seen.add(name)
                    yield name, folder, origin

    def _not_found(self, name: str, known: tuple[str, ...]) -> ModelNotFoundError:
        near = tuple(difflib.get_close_matches(name, known, n=3, cutoff=0.5))
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif _HUB_NAME.fullmatch(name):
            where = self._model_dirs[0] if self._model_dirs else "the models folder"
            hint = (
                "names of the Hugging Face hub cannot be fetched by this version: download its "
                f"files into a folder and pass that folder, or place it in {where}"
            )
        elif known:
            hint = f"known names: {', '.join(known[:10])}; or pass a folder that holds config.json"
        else:
            hint = "pass a folder that holds config.json and model.safetensors"
        return ModelNotFoundError(
            f"model {quoted(name)}: expected a known name or a folder, found neither",
            hint=hint,
            name=name,
            known=known,
            near=near,
        )


def _model_folders(place: Path) -> list[Path]:
    """Subfolders that look like models, sound or not, sorted by name."""
    found = []
    try:
        for number, entry in enumerate(place.iterdir()):
            if number >= _MAX_ENTRIES:
                break
            if not entry.name.startswith(".") and entry.is_dir() and _looks_like_model(entry):
                found.append(entry)
    except OSError:
        # An absent or unreadable store folder holds no models; doctor shows its path.
        return []
    return sorted(found)


def _looks_like_model(folder: Path) -> bool:
    try:
        return (folder / "config.json").exists() or any(folder.glob("*.safetensors"))
    except OSError:
        return True


def _shown_name(name: str) -> str:
    """The folder's name, or its escaped form where it is not plainly printable."""
    return name if name.isprintable() and len(name) <= 200 else quoted(name)
