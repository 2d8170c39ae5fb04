"""ModelStore: names to folders. Downloads are no part of it; it opens no socket."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import ModelNotFoundError, StoreError
from qh_runtime.store.entry import ModelEntry, Origin, describe_folder, describe_stored
from qh_runtime.store.layout import StoreLayout, model_slug, name_of_slug

__all__ = ["ModelEntry", "ModelStore"]

# Entries of one folder that are looked at; a models folder with more is something else.
_MAX_ENTRIES = 4096


class ModelStore:
    """The built-in models, those that were pulled or imported, and those in folders.

    Args:
        builtin_dir: holds one folder per built-in model; None where there is none.
        model_dirs: hold one folder per model, earlier ones first where names repeat.
        layout: of pulled and imported models; None where there are none.
    """

    def __init__(
        self,
        builtin_dir: Path | None,
        model_dirs: Sequence[Path],
        layout: StoreLayout | None = None,
    ) -> None:
        self._builtin_dir = builtin_dir
        self._model_dirs = tuple(model_dirs)
        self._layout = layout

    @property
    def model_dirs(self) -> tuple[Path, ...]:
        """The searched folders; they need not exist."""
        return self._model_dirs

    @property
    def layout(self) -> StoreLayout | None:
        """Of pulled and imported models."""
        return self._layout

    def default_name(self) -> str:
        """Return the name of the model that is used when none is asked for.

        Raises:
            ModelNotFoundError: no built-in model is installed.
        """
        for name, _ in self._builtin_folders():
            return name
        raise ModelNotFoundError(
            "built-in model: expected one beside the program, found none",
            hint="reinstall qh-chat, or name a folder with -m",
            name="",
            known=(),
        )

    def list(self) -> tuple[ModelEntry, ...]:
        """Return every model that can be named, built-in ones first; broken ones with a problem.

        Pulled models are listed from their manifests, folders from config.json and headers.
        """
        return tuple(self._describe(name, *found) for name, found in self._found().items())

    def resolve(self, name_or_path: str) -> ModelEntry:
        """Return the model of a name, or of a folder in Hugging Face layout.

        The part of a pulled model's name after the "/" is a name, too, where no other model has it.
        A plain word is a name first and a folder second.

        Raises:
            ModelNotFoundError: none of these. Facts: name, known, near.
        """
        found = self._found()
        exact = found.get(name_or_path)
        if exact is not None:
            return self._describe(name_or_path, *exact)
        ending = [x for x in found if x.rpartition("/")[2] == name_or_path]
        if len(ending) == 1:
            return self._describe(ending[0], *found[ending[0]])
        path = self._existing_folder(name_or_path)
        if path is not None:
            return describe_folder(_shown_name(path.absolute().name), path, "folder")
        if not ending:
            _refuse_path(name_or_path)
        raise self._not_found(name_or_path, tuple(found), tuple(ending))

    def _describe(self, name: str, place: Path, origin: Origin) -> ModelEntry:
        if origin == "store":
            assert self._layout is not None
            return describe_stored(self._layout, place)
        return describe_folder(name, place, origin)

    def _found(self) -> dict[str, tuple[Path, Origin]]:
        """Name to (folder, or manifest of the store, and origin) of every model, in their order."""
        found: dict[str, tuple[Path, Origin]] = {}
        for name, folder in self._builtin_folders():
            found.setdefault(name, (folder, "built-in"))
        for name, manifest in self._manifests():
            found.setdefault(name, (manifest, "store"))
        for place in self._model_dirs:
            for folder in _model_folders(place):
                found.setdefault(_shown_name(folder.name), (folder, "folder"))
        return found

    def _builtin_folders(self) -> Iterator[tuple[str, Path]]:
        if self._builtin_dir is not None:
            for folder in _model_folders(self._builtin_dir):
                yield _shown_name(folder.name), folder

    def _manifests(self) -> Iterator[tuple[str, Path]]:
        if self._layout is None:
            return
        try:
            paths = sorted(self._layout.manifests.glob("[!.]*.json"))
        except OSError:
            return
        for path in paths:
            try:
                yield name_of_slug(path.name.removesuffix(".json")), path
            except StoreError:
                # Not a name that the store gives; prune shows it.
                continue

    def _existing_folder(self, text: str) -> Path | None:
        if not text or "\0" in text:
            return None
        try:
            path = Path(text).expanduser()
            return path if path.is_dir() else None
        except (OSError, RuntimeError, ValueError):
            return None

    def _not_found(
        self, name: str, known: tuple[str, ...], ending: tuple[str, ...]
    ) -> ModelNotFoundError:
        near = ending or tuple(difflib.get_close_matches(name, known, n=3, cutoff=0.6))
        hub_name = _is_hub_name(name)
        if near:
            hint = f"did you mean {' or '.join(near)}?"
            if hub_name:
                hint += f" qh-chat pull {name} fetches that name from the hub"
        elif hub_name:
            hint = f"qh-chat pull {name} fetches it from the hub; or pass a folder"
        elif known:
            hint = f"known names: {', '.join(known[:10])}; or pass a folder that holds config.json"
        else:
            hint = "pass a folder that holds config.json and model.safetensors"
        return ModelNotFoundError(
            f"model {quoted(name)}: expected a known name or a folder, found "
            + (f"{len(ending)} models of that name" if ending else "neither"),
            hint=hint,
            name=name,
            known=known,
            near=near,
            hub_name=hub_name,
        )


def _refuse_path(text: str) -> None:
    """Say what is wrong with a path that is no folder; a word that can only be a name passes.

    Raises:
        ModelNotFoundError: facts as of any name, known and near empty.
    """
    if not text or "\0" in text:
        return
    try:
        path = Path(text).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):
        return
    if is_file:
        found, hint = "a file", f"pass the folder it is in: {quoted(str(path.absolute().parent))}"
    elif text.startswith(("/", "./", "../", "~")):
        found, hint = "nothing", "check the path"
    else:
        return
    raise ModelNotFoundError(
        f"model {quoted(text)}: expected a folder in Hugging Face layout, found {found}",
        hint=hint,
        name=text,
        known=(),
        near=(),
        hub_name=False,
    )


def _is_hub_name(name: str) -> bool:
    """Whether `qh-chat pull` would take it."""
    try:
        model_slug(name)
    except StoreError:
        return False
    return "/" in name


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
