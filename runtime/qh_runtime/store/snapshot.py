"""Snapshots: the folder of links that makes a model in the store a folder like any other.

Derived from the manifest and made again whenever it differs; loading and `verify` both do so.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import Manifest

__all__ = ["link_snapshot", "remove_snapshot", "wrong_links"]


def link_snapshot(layout: StoreLayout, manifest: Manifest) -> Path:
    """Make the model's folder hold a link for each file of the manifest and nothing else.

    Each link changes at once: who reads the folder meanwhile finds the old file or the new one.
    The caller holds the store's lock.

    Raises:
        OSError: the disk refuses.
    """
    folder = layout.snapshot(manifest.name)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {file.path for file in manifest.files}
    for path, target in _targets(layout, manifest):
        link = folder / path
        _make_folders(folder, link.parent)
        if _target_of(link) == target:
            continue
        if _is_real_folder(link):
            shutil.rmtree(link)
        temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}.tmp")
        os.symlink(target, temporary)
        os.replace(temporary, link)
    for entry in _entries(folder):
        relative = entry.relative_to(folder).as_posix()
        if _is_real_folder(entry):
            if not any(x.startswith(f"{relative}/") for x in wanted):
                shutil.rmtree(entry)
        elif relative not in wanted:
            # Perhaps gone with its folder.
            entry.unlink(missing_ok=True)
    return folder


def wrong_links(layout: StoreLayout, manifest: Manifest) -> tuple[str, ...]:
    """Names of the manifest's files whose link is missing or leads elsewhere."""
    folder = layout.snapshot(manifest.name)
    return tuple(
        path
        for path, target in _targets(layout, manifest)
        if _target_of(folder / path) != target or not _plain_parents(folder, folder / path)
    )


def remove_snapshot(layout: StoreLayout, name: str) -> None:
    """Remove a model's folder of links; blobs stay. Nothing happens where there is none."""
    folder = layout.snapshot(name)
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _targets(layout: StoreLayout, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(name in the folder, text of its link) of each file."""
    for file in manifest.files:
        up = "../" * (2 + file.path.count("/"))
        yield file.path, f"{up}{layout.blobs.name}/{layout.blob(file.sha256).name}"


def _target_of(link: Path) -> str | None:
    try:
        return os.readlink(link)
    except OSError:
        return None


def _make_folders(top: Path, folder: Path) -> None:
    """Make real folders from top down to folder; what is no folder is replaced."""
    for depth in range(len(folder.relative_to(top).parts) + 1):
        part = top.joinpath(*folder.relative_to(top).parts[:depth])
        if not _is_real_folder(part):
            part.unlink(missing_ok=True)
            part.mkdir()


def _plain_parents(top: Path, path: Path) -> bool:
    return all(_is_real_folder(x) for x in (top, *path.parents) if x.is_relative_to(top))


def _is_real_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    """Everything below a folder, not through links; the outer ones first."""
    found: list[Path] = []
    for top, folders, files in os.walk(folder):
        found += [Path(top, x) for x in sorted((*folders, *files))]
    return found
