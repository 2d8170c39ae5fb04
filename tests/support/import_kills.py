"""`python -m tests.support.import_kills kill,refuse MOST,MOST FOLDER MODEL`: imports, disturbed.

After each disturbance a model is listed as ready only if it is whole, and the next import makes it
whole. Prints how many there were.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from qh_runtime.hardware.profile import probe
from qh_runtime.store.disk import prune
from qh_runtime.store.import_folder import ImportRequest, import_folder
from qh_runtime.store.integrity import Verifier
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import read_manifest
from qh_runtime.store.store import ModelStore
from tests.support.kill_points import How, disturb_at_points, read_plan


def main(plan: Sequence[tuple[How, int]], folder: Path, model: Path) -> int:
    """Disturb it; returns how often."""
    layout = StoreLayout(folder / "store")
    profile = probe(folder)

    def bring() -> None:
        import_folder(ImportRequest(model), layout, profile)

    def check() -> None:
        for entry in ModelStore(None, [], layout).list():
            if entry.problem is None:
                assert entry.manifest is not None
                assert Verifier(layout).verify(entry.manifest) == ()
        bring()
        manifest = read_manifest(layout.manifest("tiny"))
        assert manifest.state == "ready"
        assert Verifier(layout).verify(manifest) == ()
        prune(layout, folder / "packed", settled_s=0)
        named = {x.sha256 for x in manifest.files}
        assert {x.name.removesuffix(".crc") for x in layout.blobs.iterdir()} == named
        assert not list(layout.parts.iterdir())

    def prepare() -> None:
        shutil.rmtree(layout.root, ignore_errors=True)

    return sum(disturb_at_points(how, prepare, bring, check, most) for how, most in plan)


if __name__ == "__main__":
    print(main(read_plan(sys.argv[1], sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])))
