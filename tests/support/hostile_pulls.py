"""`python -m tests.support.hostile_pulls ENDPOINT FOLDER` : pulls of what standard input names.

Each line is a pull request in JSON. An audit hook sees every file that is opened, made, linked,
renamed or removed from the first pull on; a line for each that lies outside FOLDER/store, and is
not read by Python itself or by the library, is printed, then the outcomes as JSON. Beside the store
lie files that hostile names lead to.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import huggingface_hub.hf_api  # noqa: F401 - everything that a pull imports, before the hook
from huggingface_hub import constants

import qh_runtime.architectures
import qh_runtime.store.download
import qh_runtime.tokenizers.chat_template
import qh_runtime.tokenizers.from_hf  # noqa: F401
from qh_runtime.errors import QhError
from qh_runtime.hardware.profile import probe
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.pull import PullRequest, pull
from qh_runtime.store.transfer import FetchOptions

# Facts of the machine, and the sources of what runs; nothing of a repository leads there unseen,
# because what a hostile name would reach for lies elsewhere (/etc, the home, beside the store).
_ALLOWED = (
    *("/proc", "/sys", "/dev/null", "/dev/urandom"),
    *(x for x in sys.path if x),
    *(constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH),
)
_FILES = frozenset(
    {
        *("open", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.mkdir"),
        *("os.truncate", "os.chmod", "os.utime", "os.listdir", "os.scandir", "shutil.rmtree"),
    }
)
_PROGRAMS = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class"}
)


class Watch:
    """Notes what leaves the store."""

    def __init__(self, store: Path) -> None:
        self._store = str(store.resolve())
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _PROGRAMS:
            self.seen.append(f"{event} {arguments[:1]!r}")
        if event not in _FILES:
            return
        # Of a link, its own place: where it leads is asked when it is opened.
        first, last = {"os.symlink": (1, 2), "os.rename": (0, 2), "os.link": (0, 2)}.get(
            event, (0, 1)
        )
        # What a tree is removed with goes by an open folder and a name in it.
        opened = arguments[1] if event in ("os.remove", "os.rmdir") else -1
        folder = os.readlink(f"/proc/self/fd/{opened}") if opened != -1 else ""
        for path in arguments[first:last]:
            if isinstance(path, str | bytes | os.PathLike) and not self._inside(folder, path):
                self.seen.append(f"{event} {path!r}")

    def _inside(self, folder: str, path: str | bytes | os.PathLike[Any]) -> bool:
        real = os.path.realpath(os.path.join(folder, os.fsdecode(path)))
        places = (self._store, *_ALLOWED)
        return any(real == x or real.startswith(f"{x}/") for x in places)


def main(endpoint: str, folder: Path) -> None:
    """Pull and print."""
    store = folder / "store"
    store.mkdir()
    os.chdir(folder)
    profile = probe(store)
    options = FetchOptions(retry_delay_s=0.001, tries=1)
    outcomes: Counter[str] = Counter()
    watch = Watch(store)
    sys.addaudithook(watch)
    # It sees what it is for.
    (folder / "x").read_bytes()
    assert len(watch.seen) == 1
    watch.seen.clear()
    for line in sys.stdin:
        try:
            manifest = pull(
                PullRequest(**json.loads(line), endpoint=endpoint),
                StoreLayout(store),
                options,
                profile,
            )
            outcomes["pulled" if manifest else "stopped"] += 1
        except QhError as error:
            clear = str(error).isprintable() and error.hint
            outcomes[type(error).__name__ if clear else f"unclear: {error!r}"] += 1
    print(json.dumps({"outcomes": outcomes, "outside": watch.seen}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
