"""ModelEntry: what is known of one model without loading it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import TensorSource, open_checkpoint
from qh_runtime.checkpoints.config import CheckpointConfig, read_config, read_key
from qh_runtime.checkpoints.schemes import require_known_scheme
from qh_runtime.errors import IntegrityError, QhError, StoreError
from qh_runtime.store.layout import StoreLayout, name_of_slug
from qh_runtime.store.manifest import Manifest, StoredFile, read_manifest
from qh_runtime.units import gigabytes

__all__ = ["ModelEntry", "Origin", "describe_folder", "describe_stored", "fetched_bytes"]

Origin = Literal["built-in", "store", "folder"]

# What the store shows for weights that are held plainly, by container type.
_DENSE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


@dataclass(frozen=True)
class ModelEntry:
    """One model.

    Attributes:
        name: what `-m` takes; printable, or escaped where the folder's name is not.
        folder: in Hugging Face layout.
        origin: "built-in", "store" for what was pulled or imported, "folder" for one that a person
            placed or named.
        model_type: of config.json, "" where that cannot be read.
        format: how the checkpoint holds its weights: "f32", "f16", "bf16", "ternary", or the
            scheme's own name; "" where that cannot be read.
        file_bytes: size of the weights in a folder, of all files in the store; 0 where they cannot
            be read.
        problem: why it cannot be loaded, as far as config, headers or the manifest tell; None for a
            sound one.
        error: what was raised for it, where something was.
        manifest: of the store. done_bytes: what has arrived of it.
    """

    name: str
    folder: Path
    origin: Origin
    model_type: str = ""
    format: str = ""
    file_bytes: int = 0
    problem: str | None = None
    manifest: Manifest | None = None
    done_bytes: int = 0
    error: QhError | None = field(default=None, compare=False, repr=False)

    @property
    def layout(self) -> StoreLayout | None:
        """The store that it lies in; None for other folders."""
        return StoreLayout(self.folder.parent.parent) if self.origin == "store" else None


def describe_stored(layout: StoreLayout, path: Path) -> ModelEntry:
    """Return the entry of a manifest, from what it says alone; no other file is opened.

    Raises:
        StoreError: the file's name is not that of a model.
    """
    name = name_of_slug(path.name.removesuffix(".json"))
    folder = layout.snapshot(name)
    try:
        manifest = read_manifest(path)
    except IntegrityError as error:
        return ModelEntry(name, folder, "store", problem=str(error), error=error)
    problem = None
    done_bytes = total_bytes = manifest.total_bytes
    if manifest.state == "pulling":
        done_bytes = fetched_bytes(layout, manifest)
        again = f"pull {name}"
        if manifest.origin == "import":
            again = f"import {manifest.endpoint} --name {name}"
        problem = (
            f"incomplete: {gigabytes(done_bytes)} of {gigabytes(total_bytes)} are here; "
            f"qh-chat {again} goes on"
        )
    return ModelEntry(
        name,
        folder,
        "store",
        model_type=_short(manifest.model_type),
        format=_short(manifest.format),
        file_bytes=total_bytes,
        problem=problem,
        manifest=manifest,
        done_bytes=done_bytes,
    )


def fetched_bytes(layout: StoreLayout, manifest: Manifest) -> int:
    """Bytes of a model's files that have arrived, as their sizes on the disk tell."""
    return sum(_arrived(layout, file) for file in manifest.files)


def _arrived(layout: StoreLayout, file: StoredFile) -> int:
    if file.sha256 and layout.blob(file.sha256).exists():
        return file.size
    try:
        part = layout.part(file.key).stat()
    except (OSError, StoreError):
        return 0
    # Parts have holes where nothing has arrived.
    return min(file.size, part.st_blocks * 512)


def describe_folder(name: str, folder: Path, origin: Origin) -> ModelEntry:
    """Return the entry of a folder from config.json and the headers of its weight files.

    Weights are not read. What is broken ends up in `problem`; nothing is raised for it, and what
    could be read is shown beside it.
    """
    entry = ModelEntry(name, folder, origin)
    refusal: QhError
    try:
        config = read_config(folder)
        entry = replace(entry, model_type=_short(read_key(config.model, str, "model_type", "")))
        source = open_checkpoint(folder)
        try:
            file_bytes = sum(source.info(x).nbytes for x in source.names())
            entry = replace(entry, format=_format(config, source), file_bytes=file_bytes)
        finally:
            source.close()
        spec_from_config(config.model)
        require_known_scheme(config.model)
        return entry
    except QhError as error:
        refusal = error
    except OSError as error:
        refusal = StoreError(
            f"cannot be read: {error.strerror or type(error).__name__}",
            hint="check its permissions and this process's limits",
            path=str(folder),
        )
    return replace(entry, problem=str(refusal), error=refusal)


def _format(config: CheckpointConfig, source: TensorSource) -> str:
    """The quantization method that config.json names, else the container type of most bytes."""
    scheme = config.model.get("quantization_config")
    if isinstance(scheme, dict):
        method = scheme.get("quant_method")
        if method == "bitnet":
            return "ternary"
        if isinstance(method, str) and method:
            return _short(method)
    sizes: Counter[str] = Counter()
    for name in source.names():
        info = source.info(name)
        sizes[info.dtype] += info.nbytes
    most = sizes.most_common(1)
    return _DENSE.get(most[0][0], most[0][0].lower()) if most else ""


def _short(text: str) -> str:
    """At most 40 printable ASCII characters of a hostile word."""
    return "".join(x if x.isascii() and x.isprintable() else "?" for x in text[:40])
