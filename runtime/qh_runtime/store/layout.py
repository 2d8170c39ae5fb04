"""Where the store keeps what, and the rule for each name; the one page on its layout.

    <root>/
      manifests/<slug>.json     one model: repository, commit, its files with size and SHA-256. A
                                model exists when its manifest says "ready"; "pulling" is an
                                intention whose parts are kept
      snapshots/<slug>/         the model as a folder in Hugging Face layout: relative links into
                                blobs/, so that any program can read it. Derived from the manifest
      blobs/<sha256>            whole files, named by their content, checked before they get this
                                name, read-only, never changed. Models share them
      blobs/<sha256>.crc        CRC-32 of every MiB, so that damage is found and only it is fetched
      parts/<key>.part          bytes that have arrived, at their place in the file
      parts/<key>.journal       which MiB of the part are complete, each with its CRC-32
      locks/<key>.lock          held while a part grows or a blob is repaired; `store.lock` is held
                                while manifests and blobs are put together or removed, and
                                `look-<token>.lock` while small files are looked through (looks.py)

    slug    the model's name with "/" as "--", ":" as "+", and "@" kept
    key     the file's SHA-256, or "git-" and the git hash where the hub knows no other

Everything appears under its name by rename, after its bytes are on the disk. What a killed process
leaves behind is a manifest that says "pulling", parts with their journals, temporary files (".tmp"
in the name) and lock files, which are empty and free: the next pull of the same model goes on from
them, `prune` removes the rest. Packed weights and the records of self-tests are no part of the
store: they are derived and live in the cache folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qh_runtime.errors import StoreError

__all__ = ["StoreLayout", "check_digest", "model_slug", "name_of_slug"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT = re.compile(r"[0-9a-f]{40}")
# One or two parts (imported models have one), then @revision, then :artifact.
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_WORD}(?:/{_WORD})?(?:@{_WORD})?(?::{_WORD})?")


@dataclass(frozen=True)
class StoreLayout:
    """The folders of one store; none of them need exist."""

    root: Path

    @property
    def manifests(self) -> Path:
        """Folder of the manifests."""
        return self.root / "manifests"

    @property
    def snapshots(self) -> Path:
        """Folder of the model folders."""
        return self.root / "snapshots"

    @property
    def blobs(self) -> Path:
        """Folder of whole files."""
        return self.root / "blobs"

    @property
    def parts(self) -> Path:
        """Folder of unfinished files."""
        return self.root / "parts"

    @property
    def locks(self) -> Path:
        """Folder of lock files."""
        return self.root / "locks"

    @property
    def store_lock(self) -> Path:
        """Held while manifests and blobs are put together or removed."""
        return self.locks / "store.lock"

    def manifest(self, name: str) -> Path:
        """The manifest of a model."""
        return self.manifests / f"{model_slug(name)}.json"

    def snapshot(self, name: str) -> Path:
        """The folder of a model, which the loader opens."""
        return self.snapshots / model_slug(name)

    def blob(self, sha256: str) -> Path:
        """A whole file."""
        return self.blobs / check_digest(sha256)

    def blob_checks(self, sha256: str) -> Path:
        """The CRC-32 of every MiB of a blob."""
        return self.blobs / f"{check_digest(sha256)}.crc"

    def part(self, key: str) -> Path:
        """The bytes of an unfinished file."""
        return self.parts / f"{_check_key(key)}.part"

    def journal(self, key: str) -> Path:
        """What is complete of an unfinished file."""
        return self.parts / f"{_check_key(key)}.journal"

    def lock(self, key: str) -> Path:
        """The lock of one unfinished or damaged file."""
        return self.locks / f"{_check_key(key)}.lock"


def check_digest(text: str) -> str:
    """Return a SHA-256 in lower-case hexadecimal; it becomes a file name.

    Raises:
        StoreError: anything else. Facts: digest.
    """
    if not _SHA256.fullmatch(text):
        raise StoreError(
            f"digest {text[:80]!r}: expected 64 lower-case hexadecimal digits",
            hint="the hub or the manifest is damaged; do not use it",
            digest=text[:80],
        )
    return text


def model_slug(name: str) -> str:
    """Return the file name of a model's name: `org/model@revision:artifact`, most of it optional.

    Different names have different slugs, also where case does not count.

    Raises:
        StoreError: not such a name. Facts: name.
    """
    if not _NAME.fullmatch(name) or "--" in name or ".." in name or len(name) > 200:
        raise StoreError(
            f"model name {name[:80]!r}: expected letters, digits, '-', '_' and '.', and at most "
            "one '/', for example org/model",
            hint="copy the name from the model's page",
            name=name[:80],
        )
    return name.replace("/", "--").replace(":", "+")


def name_of_slug(slug: str) -> str:
    """Return the name that a slug was made from; StoreError if it was made from none."""
    name = slug.replace("--", "/").replace("+", ":")
    if model_slug(name) != slug:
        raise StoreError(f"{slug[:80]!r}: expected the file name of a model", name=slug[:80])
    return name


def _check_key(key: str) -> str:
    if key.startswith("git-") and _GIT.fullmatch(key[4:]):
        return key
    return check_digest(key)
