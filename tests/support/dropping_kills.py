"""`python -m tests.support.dropping_kills kill,refuse MOST,MOST FOLDER`: `drop_source`, disturbed.

After each disturbance the model loads to the same bytes as before, and one prune leaves only what
is named. Prints how many there were.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.packing import load_packed_model
from qh_runtime.store.disk import prune
from qh_runtime.store.dropped_source import DroppedSource
from qh_runtime.store.dropping import drop_source
from qh_runtime.store.integrity import Verifier, check
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import read_manifest
from qh_runtime.store.source import open_source
from tests.support.kill_points import How, disturb_at_points, read_plan
from tests.support.model_tensors import config, random_tensors, write_checkpoint
from tests.support.stored_models import folder_files, store_model

NAME = "org/model"


def main(plan: Sequence[tuple[How, int]], folder: Path) -> int:
    """Disturb it; returns how often."""
    master = folder / "master"
    layout, packed = StoreLayout(folder / "store"), folder / "packed"
    settings = config(hidden_size=128, head_dim=32, intermediate_size=256, num_hidden_layers=1)
    write_checkpoint(master, settings, random_tensors(spec_from_config(settings)))

    def load() -> tuple[bytes, ...]:
        place = layout.snapshot(NAME)
        source = open_source(place)
        model = load_packed_model(
            spec_from_config(settings),
            source,
            layout_for(read_config(place).model),
            pack="int8",
            cache_folder=packed,
            folder=place,
            kept_pack=source.pack_path if isinstance(source, DroppedSource) else None,
            threads=1,
        )
        assert model is not None
        layers = [x.q.data.tobytes() + x.down.data.tobytes() for x in model.weights.layers]
        return (model.weights.head.data.tobytes(), *layers)

    store_model(layout, NAME, folder_files(master))
    expected = load()
    os.rename(layout.root, folder / "store-master")
    os.rename(packed, folder / "packed-master")

    def prepare() -> None:
        for place, kept in ((layout.root, "store-master"), (packed, "packed-master")):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(folder / kept, place, symlinks=True)

    def verify() -> None:
        manifest = read_manifest(layout.manifest(NAME))
        check(layout, manifest)
        assert Verifier(layout).verify(manifest) == ()
        prune(layout, packed, settled_s=0)
        assert load() == expected
        named = {x.sha256 for x in manifest.files}
        assert {x.name.removesuffix(".crc") for x in layout.blobs.iterdir()} == named

    def act() -> None:
        drop_source(layout, packed, NAME)

    return sum(disturb_at_points(how, prepare, act, verify, most) for how, most in plan)


if __name__ == "__main__":
    print(main(read_plan(sys.argv[1], sys.argv[2]), Path(sys.argv[3])))
