"""Whatever happens to an unfinished file, what counts is right and nothing right is lost."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qh_runtime.store import part as part_module
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.part import Part

# Chunks of 64 bytes: the same code, thousands of times faster.
CHUNK = 64
COUNT = 7
SIZE = COUNT * CHUNK - 13
CONTENT = random.Random(2).randbytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

indices = st.integers(0, COUNT - 1)


class PartMachine(RuleBasedStateMachine):
    """Puts, partial puts, kills, torn journals and lost pages against a model of what is there."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(part_module, "CHUNK_BYTES", CHUNK)
        self.patch.setattr(part_module, "SYNC_BYTES", 2 * CHUNK)
        self.patch.setattr(part_module.os, "fsync", lambda descriptor: None)
        self.patch.setattr(part_module, "_sync_data", lambda descriptor: None)
        self.folder = Path(tempfile.mkdtemp())
        self.layout = StoreLayout(self.folder)
        self.part = Part(self.layout, SHA256, SIZE)
        # Bytes that must be there, by chunk; those that a fault may have taken are not in it.
        self.there: dict[int, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "part"):
            self.part.close()
            shutil.rmtree(self.folder)
            self.patch.undo()

    @rule(index=indices, share=st.floats(0, 1))
    def put(self, index: int, share: float) -> None:
        """What a connection does: it goes on after what is there and sound."""
        begin = index * CHUNK
        buffer = memoryview(bytearray(CHUNK))
        found = self.part.read(index, buffer, check=True)
        start = len(found) if found is not None else 0
        length = max(start, round(share * self.part.chunk_length(index)))
        if length > start:
            self.part.put(index, memoryview(CONTENT)[begin : begin + length], start)
            self.there[index] = length

    @rule()
    def kill(self) -> None:
        """The process ends and another one opens the part."""
        self.part.close()
        self.part = Part(self.layout, SHA256, SIZE)

    @rule(cut=st.integers(1, 40))
    def tear(self, cut: int) -> None:
        """The end of the journal is lost, with the process."""
        self.part.close()
        path = self.layout.journal(SHA256)
        data = path.read_bytes()
        path.write_bytes(data[: max(92, len(data) - cut)])
        self.there = {}
        self.part = Part(self.layout, SHA256, SIZE)

    @rule(place=st.integers(0, 10_000), bit=st.integers(0, 7), which=st.booleans())
    def rot(self, place: int, bit: int, which: bool) -> None:
        """A bit of the journal or of the data changes, between two processes."""
        self.part.close()
        path = self.layout.journal(SHA256) if which else self.layout.part(SHA256)
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= 1 << bit
        path.write_bytes(data)
        if which:
            # A header that is not ours starts anew; a record hides its chunk or what was before.
            self.there = {}
        else:
            self.there.pop((place % len(data)) // CHUNK, None)
        self.part = Part(self.layout, SHA256, SIZE)

    @rule(garbage=st.binary(max_size=70))
    def append(self, garbage: bytes) -> None:
        """Something else is written behind the journal."""
        self.part.close()
        with open(self.layout.journal(SHA256), "ab") as file:
            file.write(garbage)
        self.part = Part(self.layout, SHA256, SIZE)

    @precondition(lambda self: hasattr(self, "part"))
    @rule()
    def finish(self) -> None:
        """Everything missing is put, and the blob is the file."""
        for index in range(COUNT):
            self.put(index, 1.0)
        blob = self.part.finish(SHA256)
        assert blob.read_bytes() == CONTENT
        assert list(self.layout.parts.iterdir()) == []
        blob.unlink()
        self.there = {}
        self.part = Part(self.layout, SHA256, SIZE)

    @invariant()
    def what_counts_is_right_and_what_is_right_counts(self) -> None:
        if not hasattr(self, "part"):
            return
        total = 0
        for index in range(COUNT):
            buffer = memoryview(bytearray(CHUNK))
            length = self.part.prefix(index)
            found = self.part.read(index, buffer, check=True)
            data = b"" if found is None else bytes(found)
            assert data == CONTENT[index * CHUNK :][: len(data)]
            assert len(data) in (0, length)
            assert len(data) >= self.there.get(index, 0)
            total += len(data)
        assert self.part.done_bytes == total


PartMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_part = PartMachine.TestCase
