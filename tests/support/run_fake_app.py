"""Runs the app on a scripted engine: `python -m tests.support.run_fake_app [DIR]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from qh_chat.app import QhChatApp
from qh_chat.engine import LoadStep
from qh_chat.paths import app_paths
from qh_chat.places import Places
from qh_chat.settings import load_settings
from qh_chat.shelf import Shelf
from qh_runtime.errors import ModelNotFoundError
from tests.support.fake_engine import FakeEngine, FakeModels, Script
from tests.support.sample_text import CHISEL, TABLE, THINKING


def main() -> None:
    """Start it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="qh-fake-"))
    places = Places.below(folder, folder, folder)
    engine = FakeEngine(
        [Script(CHISEL, rate=31, first_token_s=0.4), Script(TABLE, rate=60), Script(THINKING, 40)]
    )
    missing = ModelNotFoundError("nowhere: no such model", hint="f3 lists what there is")
    models = FakeModels(
        {"built-in": engine, "nowhere": missing},
        steps=[LoadStep("reading weights", n, 20) for n in range(21)],
        step_s=0.1,
    )
    shelf = Shelf(app_paths({"QH_HOME": str(folder)}), {})
    app = QhChatApp(load_settings(places.settings, {}), places, models, shelf)
    sys.exit(app.run())


if __name__ == "__main__":
    main()
