"""What tests measure for the reliability table: `record_property(name, value)`, once or often.

cases           attacks in this test, where it is more than one           summed
bad_files       wrong bytes under a final name                            summed
orphan_bytes    left in the store by what failed, after the next success  summed
outside_bytes   written or read outside the store                         summed
refetched_bytes sent again because of one kill                            the largest
sent_ratio      bytes sent against the size of the file                   the largest
lock_free_s     until a lock of a killed process is had by the next       the largest
stall_noticed_s until a connection that says nothing is given up          the largest
reject_s        until a hostile file is refused                           the largest
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LARGEST", "SUMMED", "Record"]

SUMMED = ("cases", "bad_files", "orphan_bytes", "outside_bytes")
LARGEST = ("refetched_bytes", "sent_ratio", "lock_free_s", "stall_noticed_s", "reject_s")

Record = Callable[[str, object], None]
