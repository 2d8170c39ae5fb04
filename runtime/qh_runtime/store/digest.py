"""The hash of a file that is still arriving: follows the chunks in order, one behind the other."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from qh_runtime.errors import IntegrityError
from qh_runtime.store.claims import Claims
from qh_runtime.store.part import CHUNK_BYTES, Part
from qh_runtime.store.transfer import RemoteFile

__all__ = ["FileDigest", "Follower"]


class FileDigest:
    """SHA-256 of a file, and git's blob hash where that is the only one known."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git = None
        if not file.sha256:
            self._git = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    @property
    def sha256(self) -> str:
        """Of the bytes so far."""
        return self._sha256.hexdigest()

    @property
    def expected(self) -> str:
        """What the file must have."""
        return self._file.sha256 or self._file.git_sha1

    @property
    def found(self) -> str:
        """What it has."""
        return self.sha256 if self._git is None else self._git.hexdigest()

    def error(self) -> IntegrityError:
        """The error for bytes that are not the file's."""
        return IntegrityError(
            f"{self._file.path}: expected hash {self.expected}, found {self.found}",
            hint="what was fetched is thrown away; pull again, and if it happens again the file on "
            "the hub is not what the hub says",
            path=self._file.path,
            expected=self.expected,
            found=self.found,
        )


class Follower(threading.Thread):
    """Reads the chunks of a part in order as soon as they are there, and hashes them.

    What an earlier run recorded is compared with its CRC-32 on the way; chunks that differ are
    given back to be fetched again, so a transfer goes on at once and every byte is read once.

    Args:
        digest: takes the bytes. halted: asked while waiting.
        ended: called once, with the error that ended it or None; `complete` says whether every
            byte was hashed.
    """

    def __init__(
        self,
        part: Part,
        claims: Claims,
        digest: FileDigest,
        halted: Callable[[], bool],
        ended: Callable[[BaseException | None], None],
    ) -> None:
        super().__init__(name="hash", daemon=True)
        self.complete = False
        self._part = part
        self._claims = claims
        self._digest = digest
        self._halted = halted
        self._ended = ended
        self._old = [part.has(index) for index in range(part.chunk_count)]

    def run(self) -> None:
        """Hash until the end, until halted, or until the disk fails."""
        error: BaseException | None = None
        try:
            self.complete = self._follow()
        except BaseException as caught:  # noqa: BLE001 - handed to the thread that waits for it
            error = caught
        self._ended(error)

    def _follow(self) -> bool:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for index, old in enumerate(self._old):
            data = None
            check = old
            while data is None:
                if not self._claims.wait_for(index, self._halted):
                    return False
                data = self._part.read(index, buffer, check=check)
                if data is None:
                    self._claims.give_back((index,))
                    check = False
            self._digest.update(data)
        return True
