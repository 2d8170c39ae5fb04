"""Public-domain books: a Project Gutenberg file becomes clean paragraphs, with the last part
held out.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from qh_runtime.errors import QhError

#: The last share of every book is for evaluation only.
HELD_OUT_SHARE = 0.02

_START = re.compile(
    r"^\*{3}\s*START OF (?:THE|THIS) PROJECT GUTENBERG.*$", re.MULTILINE | re.IGNORECASE
)
_END = re.compile(
    r"^(?:\*{3}\s*END OF (?:THE|THIS) PROJECT GUTENBERG"
    r"|End of (?:the |this )?Project Gutenberg).*$",
    re.MULTILINE | re.IGNORECASE,
)
#: Files from before 2003 carry the licence in front and end it with this line.
_SMALL_PRINT = re.compile(r"^\*END\*?\s*THE SMALL PRINT.*$", re.MULTILINE | re.IGNORECASE)
#: Lines that are about the file or list its chapters.
_PRODUCER = re.compile(
    r"\bproject gutenberg|gutenberg\.org|\be-?text prepared by"
    r"|^produced by\b|^transcribed from\b|proofread|=>"
    r"|\bcopyright\b|changed to \"|\bchapter [IVXL\d]+\b.*\bchapter [IVXL\d]+\b",
    re.IGNORECASE,
)
_PLAIN = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "\ufeff": None, "…": "..."}
)


@dataclass(frozen=True)
class Book:
    """One book: its catalogue number, the hash of the file it came from, and its paragraphs."""

    number: int
    name: str
    sha256: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]


def strip_licence(text: str) -> str:
    """Return the book without the header and licence that Project Gutenberg wraps around it."""
    text = text.replace("\r\n", "\n")
    starts = [m.end() for m in (*_START.finditer(text), *_SMALL_PRINT.finditer(text))]
    # The markers stand in the first part of a file; a later match would be a quotation of the
    # licence.
    begin = max((s for s in starts if s < len(text) // 2), default=0)
    end = _END.search(text, begin)
    return text[begin : end.start() if end else len(text)]


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of hard-wrapped text, one line each, with plain quotation marks and no
    illustrations.

    Underscores (italics), headings in capitals, tables of contents and notes of the producers are
    left out.
    """
    found = []
    for block in re.split(r"\n\s*\n", text.translate(_PLAIN)):
        line = re.sub(r"\s+", " ", block).strip()
        line = re.sub(r"\[(?:illustration|footnote)[^\]]*\]", "", line, flags=re.IGNORECASE)
        line = line.replace("_", "").strip()
        if len(line) < 40 and not line.endswith((".", "!", "?", '"', "'")):
            continue
        letters = [c for c in line if c.isalpha()]
        if len(letters) < 0.6 * len(line) or sum(c.isupper() for c in letters) > 0.5 * len(letters):
            continue
        if not _PRODUCER.search(line):
            found.append(line)
    return found


def read_book(path: Path) -> Book:
    """Return the book in a file named `title_number.txt`."""
    data = path.read_bytes()
    number = int(path.stem.rpartition("_")[2])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = paragraphs(strip_licence(text))
    cut, total = 0, sum(map(len, lines))
    kept = 0
    while cut < len(lines) and kept < (1 - HELD_OUT_SHARE) * total:
        kept += len(lines[cut])
        cut += 1
    return Book(
        number,
        path.stem.rpartition("_")[0],
        hashlib.sha256(data).hexdigest(),
        tuple(lines[:cut]),
        tuple(lines[cut:]),
    )


def read_books(folder: Path) -> list[Book]:
    """Return all books of a folder in the order of their numbers; QhError if there is none."""
    paths = [path for path in folder.glob("*_*.txt") if path.stem.rpartition("_")[2].isdigit()]
    if not paths:
        raise QhError(
            f"{folder}: no book found, expected files named title_number.txt",
            hint="put Project Gutenberg texts there; the model card lists their numbers",
            folder=str(folder),
        )
    books = [read_book(path) for path in paths]
    return sorted(books, key=lambda book: book.number)
