"""What a hostile hub puts where a name, a hash, a size or a commit belongs."""

from __future__ import annotations

from typing import Any

__all__ = ["COMMITS", "DIGESTS", "NAMES", "REPOSITORIES", "REVISIONS", "SIZES"]

_TRAVERSAL = [
    "../x", "../../etc/passwd", "a/../../x", "a/../x", "..", ".", "./x", "a/./b", "a//b", "/",
    "/etc/passwd", "//server/share/x", "\\\\server\\share\\x", "..\\x", "a\\b", "C:x", "C:\\x",
    "c:/x", "file:///etc/passwd", "~/x", "~root/x", "a/", "x/..", "....//x", "%2e%2e/x", "..%2fx",
]  # fmt: skip
_CONTROL = [
    "a\0b", "a\nb", "a\rb", "a\tb", "a\x1b[2Jb", "a\x7fb", "a\x85b", "\ufeffx", "a\u202etxt.exe",
    "a\u200bb", "\ud800", "a\u2215b", "a\uff0fb", "caf\u00e9.json", "\u2024\u2024/x",
]  # fmt: skip
_DEVICES = ["con", "NUL", "nul.json", "aux.safetensors", "a/COM1", "lpt9.txt", "prn/x"]
_SHAPES = [
    "", " ", " x", "x ", "x.", "a./b", ".hidden", "a/.git/config", "-rf", "x:y", "x|y", "x?y",
    "x*y", '"x"', "'x'", "<x>", "$HOME", "`id`", "a" * 241, "a/b/c/d/e", "x;y", "x&y", "x\u0000",
]  # fmt: skip
_TYPES: list[Any] = [None, 1, True, [], {}, ["x"]]

NAMES: list[Any] = [*_TRAVERSAL, *_CONTROL, *_DEVICES, *_SHAPES, *_TYPES]
DIGESTS: list[Any] = [
    None, "", 1, [], "0" * 63, "0" * 65, "0" * 39, "0" * 41, "G" * 64, "../" * 21 + "x",
    "/" + "0" * 63, "0" * 63 + "\n", "0" * 64 + "\n", "A" * 40, "\u0660" * 64, "0" * 63 + "\0",
    "sha256:" + "0" * 64, "..", "C:" + "0" * 62,
]  # fmt: skip
SIZES: list[Any] = [None, -1, 1.5, "7", True, [], 1 << 60, 1 << 70, -(1 << 63), float("inf"), {}]
COMMITS: list[Any] = [
    None, "", 1, [], "main", "0" * 39, "0" * 41, "A" * 40, "../" + "0" * 37, "0" * 39 + "\n",
    "0" * 40 + "\n", "/" * 40, "\u0660" * 40,
]  # fmt: skip
REPOSITORIES = [
    "", "/", "a/", "/a", "a/b/c", "../x", "a/..", "..", "a..b/c", "a--b/c", "a b", "a\0b", "a\nb/c",
    "\x1b[2J", "-a/b", ".a/b", "a/b?x=1", "a/b#x", "a%2fb", "https://x/y", "a" * 300, "caf\u00e9/b",
    "a\\b", "datasets/a/b", "a/b@c", "a:b", "a/b.git",
]  # fmt: skip
REVISIONS = [
    "../x", "..", "a/../b", " ", "a b", "a\0", "a\n", "-x", "/x", "x?y", "x#y", "x%2e", "\x1b[2J",
    "a" * 300, "caf\u00e9", "x\\y", ".hidden",
]  # fmt: skip
