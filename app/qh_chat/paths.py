"""Where things are kept: the platform's own folders, or one folder named by QH_HOME.

The built-in models are files of the installed package `qh_chat.assets`. In a source tree that
package does not exist; there they are in `assets/`, two folders above this file.
"""

from __future__ import annotations

import importlib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qh_chat.places import Places

__all__ = ["HOME_VARIABLE", "Paths", "app_paths", "assets_dir"]

HOME_VARIABLE = "QH_HOME"
_NAME = "qh-chat"


@dataclass(frozen=True)
class Paths:
    """Folders and files of this user; none of them need exist.

    Attributes:
        places: the files of the app itself: settings, history, log.
        models_dir: holds one folder per model that the person placed there.
        store_dir: pulled and imported models; `qh_runtime.store.layout` draws it.
        packed_dir: packed weights; derived data, may be deleted at any time.
        builtin_dir: holds one folder per built-in model; None where none is installed.
        assets_source: how the built-in models were found, for `doctor`.
    """

    places: Places
    models_dir: Path
    store_dir: Path
    packed_dir: Path
    builtin_dir: Path | None
    assets_source: str


def app_paths(environment: Mapping[str, str]) -> Paths:
    """Return the paths as the environment has them.

    Args:
        environment: usually os.environ; only QH_HOME and the platform's own variables matter.
    """
    home = environment.get(HOME_VARIABLE, "")
    if home:
        config = data = Path(home).expanduser().absolute()
        cache = data / "cache"
    else:
        import platformdirs

        config = Path(platformdirs.user_config_dir(_NAME, appauthor=False))
        data = Path(platformdirs.user_data_dir(_NAME, appauthor=False))
        cache = Path(platformdirs.user_cache_dir(_NAME, appauthor=False))
    assets, source = assets_dir()
    return Paths(
        places=Places.below(config, data, cache),
        models_dir=data / "models",
        store_dir=data / "store",
        packed_dir=cache / "packed",
        builtin_dir=None if assets is None else assets / "models",
        assets_source=source,
    )


def assets_dir() -> tuple[Path | None, str]:
    """Return the folder of shipped files and how it was found; None where there is none."""
    try:
        importlib.import_module("qh_chat.assets")
    except ModuleNotFoundError:
        tree = Path(__file__).resolve().parents[2] / "assets"
        return (tree, "source tree") if tree.is_dir() else (None, "not installed")
    folder = importlib.resources.files("qh_chat.assets")
    if isinstance(folder, Path):
        return folder, "package qh_chat.assets"
    return None, "qh_chat.assets is inside an archive; weights are mapped and need real files"
