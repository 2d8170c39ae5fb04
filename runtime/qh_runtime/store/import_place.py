"""What a path on this machine is, before anything of it is imported.

a folder with config.json               a model in Hugging Face layout
models--org--name                       a repository in a hub cache: name and commit are in it
models--org--name/snapshots/<commit>    one commit of it
a folder with one of these in it        that one; with more of them the person chooses
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qh_runtime.checkpoints.files import resolve_file
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError, StoreError
from qh_runtime.store.hub import RepoListing
from qh_runtime.store.layout import model_slug
from qh_runtime.store.names import check_file_name
from qh_runtime.store.transfer import RemoteFile

__all__ = ["ImportPlace", "find_place", "list_place"]

# Names in one folder that are looked at.
_MAX_ENTRIES = 20_000
_CACHE = re.compile(r"models--([A-Za-z0-9][A-Za-z0-9._-]*?)(?:--([A-Za-z0-9][A-Za-z0-9._-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LICENSE = re.compile(rb"(?m)^license:[ \t]*['\"]?([A-Za-z0-9._-]{1,60})['\"]?[ \t]*$")
_FILE_KINDS = {
    ".gguf": "GGUF is not read by this version",
    ".py": "code is never run",
    **dict.fromkeys(
        (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"),
        "such files run code when they are loaded",
    ),
    ".safetensors": "weights alone are no model: config.json and tokenizer.json belong to it",
}


@dataclass(frozen=True)
class ImportPlace:
    """A model on this machine, outside the store.

    Attributes:
        folder: holds config.json. name: for the store, as far as the place tells, else "".
        repo, commit: of a hub cache, else "".
    """

    folder: Path
    name: str
    repo: str = ""
    commit: str = ""


def find_place(path: Path) -> ImportPlace:
    """Return the model that a path stands for.

    Raises:
        StoreError: there is none, or more than one. Facts: path, and found where there are more.
    """
    path = Path(os.path.abspath(path.expanduser()))
    if not path.is_dir():
        _refuse_file(path)
    place = _place(path)
    if place is not None:
        return place
    inside = [x for x in map(_place, _folders(path)) if x is not None]
    if len(inside) == 1:
        return inside[0]
    names = tuple(str(x.folder) for x in inside)
    found = f"{len(inside)} models" if inside else _instead(path)
    raise StoreError(
        f"{path}: expected a model, a folder that holds config.json; found {found}",
        hint=f"choose one: {', '.join(names[:5])}" if names else "name the folder of the model",
        path=str(path),
        found=names,
    )


def list_place(place: ImportPlace) -> RepoListing:
    """Return the files of a place as a hub would list them; only names and sizes are looked at.

    A link that leaves the folder (or the blobs of its cache) is no file that is taken.

    Raises:
        StoreError: the folder cannot be read. Facts: path.
    """
    files: list[RemoteFile] = []
    wrong: dict[str, str] = {}
    for entry in _entries(place.folder):
        name = entry.name
        try:
            check_file_name(name)
            real = resolve_file(place.folder, name)
            status = real.lstat()
        except StoreError:
            wrong[quoted(name)] = "expected a plain name"
            continue
        except CheckpointError as error:
            wrong[quoted(name)] = str(error.facts.get("rule", error.message))
            continue
        except OSError as error:
            wrong[quoted(name)] = f"cannot be read: {error.strerror}"
            continue
        if not stat.S_ISREG(status.st_mode):
            if not stat.S_ISDIR(status.st_mode):
                wrong[quoted(name)] = "a pipe or device"
            continue
        sha256, git_sha1 = _known_hash(real)
        files.append(RemoteFile(name, status.st_size, sha256, git_sha1, ""))
    return RepoListing(
        repo=place.name or place.folder.name,
        revision="",
        commit=place.commit,
        endpoint=str(place.folder),
        license=_license(place.folder),
        gated=False,
        tags=(),
        base_model=(),
        files=tuple(files),
        unsound=wrong,
    )


def _place(path: Path) -> ImportPlace | None:
    cache = _CACHE.fullmatch(path.name)
    if cache and (path / "snapshots").is_dir():
        return _snapshot(path, cache)
    above = _CACHE.fullmatch(path.parent.parent.name)
    if above and path.parent.name == "snapshots":
        return _of_cache(path, above)
    if (path / "config.json").is_file():
        return ImportPlace(path, _usable_name(path.name))
    return None


def _snapshot(cache: Path, match: re.Match[str]) -> ImportPlace:
    """The commit that the main branch stands for, or the only one."""
    commits = [x for x in _folders(cache / "snapshots") if _COMMIT.fullmatch(x.name)]
    main = _commit_of(cache / "refs" / "main")
    chosen = [x for x in commits if x.name == main] or commits
    if len(chosen) == 1:
        return _of_cache(chosen[0], match)
    raise StoreError(
        f"{cache}: expected one commit in snapshots, found {len(chosen)}",
        hint="name the folder of a commit in it" if chosen else "its download is incomplete",
        path=str(cache),
        found=tuple(str(x) for x in chosen),
    )


def _of_cache(folder: Path, match: re.Match[str]) -> ImportPlace:
    repo = f"{match[1]}/{match[2]}" if match[2] else match[1]
    commit = folder.name if _COMMIT.fullmatch(folder.name) else ""
    return ImportPlace(folder, _usable_name(repo), repo, commit)


def _commit_of(ref: Path) -> str:
    try:
        with ref.open("rb") as file:
            return file.read(100).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _usable_name(text: str) -> str:
    try:
        model_slug(text)
    except StoreError:
        return ""
    return text


def _known_hash(real: Path) -> tuple[str, str]:
    """(SHA-256, git hash) that a file of a cache is named by, "" where it is not."""
    if real.parent.name == "blobs":
        if _SHA256.fullmatch(real.name):
            return real.name, ""
        if _COMMIT.fullmatch(real.name):
            return "", real.name
    return "", ""


def _license(folder: Path) -> str:
    """What the model card says, in the lines between its first two rulers."""
    try:
        real = resolve_file(folder, "README.md")
        if not stat.S_ISREG(real.lstat().st_mode):
            return ""
        with real.open("rb") as file:
            text = file.read(16_384)
    except (CheckpointError, OSError):
        return ""
    parts = text.replace(b"\r\n", b"\n").split(b"---\n", 2)
    found = _LICENSE.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return found[1].decode("ascii") if found else ""


def _folders(path: Path) -> list[Path]:
    return [x for x in _entries(path) if x.is_dir() and not x.name.startswith(".")]


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(x for _, x in zip(range(_MAX_ENTRIES), _iterate(path), strict=False))
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read: {error.strerror}",
            hint="check its permissions",
            path=str(path),
        ) from error


def _iterate(path: Path) -> Iterator[Path]:
    with os.scandir(path) as entries:
        for entry in entries:
            yield path / entry.name


def _instead(path: Path) -> str:
    """What lies in a folder that is no model, and why it is not taken."""
    for entry in _entries(path):
        reason = _FILE_KINDS.get(entry.suffix.lower())
        if reason is not None:
            return f"{quoted(entry.name)}: {reason}"
    return "none"


def _refuse_file(path: Path) -> NoReturn:
    if not path.exists():
        message, hint = "there is nothing", "check the path"
    else:
        reason = _FILE_KINDS.get(path.suffix.lower(), "it is a file")
        message, hint = reason, "name the folder that holds config.json"
    raise StoreError(
        f"{quoted(str(path))}: expected the folder of a model: {message}", hint=hint, path=str(path)
    )
