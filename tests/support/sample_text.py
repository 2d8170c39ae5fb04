"""Answers for scripted engines: prose with code, a table, thinking, and hostile text."""

from __future__ import annotations

__all__ = ["CHISEL", "HOSTILE", "TABLE", "THINKING"]

CHISEL = """\
Start with a **flat back**. Work through the grits on a flat stone, and stop when the scratches \
of the last one are gone:

```text
1000 → 3000 → 8000 grit
```

Then the bevel:

1. Set the angle to 25°, or 30° for hard wood.
2. Pull, do not push; count ten strokes.
3. Feel for the *burr* and take it off on the finest stone.

```python
def strokes(grit: int) -> int:
    return 10 if grit < 8000 else 20
```

It is sharp when it shaves end grain."""

TABLE = """\
Three grits are enough:

| grit | strokes | what you see |
| ---: | ---: | --- |
| 1000 | 10 | grey scratches |
| 3000 | 10 | a dull shine |
| 8000 | 20 | a mirror |

> Water stones want soaking first.

More in [the guide](https://example.org/guide)."""

THINKING = """\
<think>
The person wants it short. A chisel needs a flat back first.
</think>
Flatten the back, then hone the bevel at 30°."""

HOSTILE = (
    "start \x1b]0;title\x07 \x1b]52;c;aGk=\x07 \x9b31m \u202eabc\u202c \x1b[2J &#x202e;x "
    "[link](https://example.org/a) [red]markup[/red] <b>html</b> \x00 \x7f end"
)
