"""`python -m tests.support.disk_kills kill,refuse remove,prune MOST,MOST FOLDER`: at up to so many.

After each disturbance the other model is whole and listed as ready, the removed one is there or
gone, and one more run leaves exactly the files of what is there. Prints how many there were.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from qh_runtime.store.disk import prune, remove
from qh_runtime.store.integrity import Verifier
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import read_manifest
from tests.support.kill_points import How, disturb_at_points, read_plan
from tests.support.stored_models import put_blob, store_model

_FILES = {f"f{x}": bytes([x]) * 3000 for x in range(5)}


def main(how: How, most: int, operation: str, folder: Path) -> int:
    """Disturb it; returns how often."""
    layout, packed = StoreLayout(folder / "store"), folder / "packed"

    def prepare() -> None:
        shutil.rmtree(layout.root, ignore_errors=True)
        shutil.rmtree(packed, ignore_errors=True)
        packed.mkdir()
        store_model(layout, "org/stays", _FILES)
        store_model(layout, "org/goes", {**_FILES, "own": b"own", "deep/own": b"own2"})
        layout.parts.mkdir()
        for x in range(3):
            put_blob(layout, b"orphan %d" % x)
            layout.part(f"{x}" * 64).write_bytes(b"part")
            layout.journal(f"{x}" * 64).write_bytes(b"journal")
        layout.locks.mkdir()
        (layout.blobs / ".x.1.tmp").write_bytes(b"")
        (packed / "0-int8.safetensors").write_bytes(b"")

    def check() -> None:
        stays = read_manifest(layout.manifest("org/stays"))
        assert stays.state == "ready"
        assert Verifier(layout).verify(stays) == ()
        goes = layout.manifest("org/goes")
        if goes.exists():
            assert Verifier(layout).verify(read_manifest(goes)) == ()
            if operation == "remove":
                remove(layout, packed, "org/goes")
        prune(layout, packed, settled_s=0)
        left = [stays] if not goes.exists() else [stays, read_manifest(goes)]
        named = {x.sha256 for manifest in left for x in manifest.files}
        found = {x.name.removesuffix(".crc") for x in layout.blobs.iterdir()}
        assert found == named, found ^ named
        assert len(list(layout.snapshots.iterdir())) == len(left)
        assert not list(layout.parts.iterdir())
        assert not list(packed.iterdir())
        assert list(layout.locks.iterdir()) == [layout.store_lock]

    def act() -> None:
        if operation == "remove":
            remove(layout, packed, "org/goes")
        else:
            prune(layout, packed, settled_s=0)

    return disturb_at_points(how, prepare, act, check, most)


if __name__ == "__main__":
    plan = [(x, y) for x in read_plan(sys.argv[1], sys.argv[3]) for y in sys.argv[2].split(",")]
    print(sum(main(*x, y, Path(sys.argv[4])) for x, y in plan))
