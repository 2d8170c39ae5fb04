"""Checks tokenizer.json before the `tokenizers` library sees it.

The library trusts its file: a merge whose result is no token, a post-processor that names a token
which does not exist, or an empty replace pattern end in a Rust panic, at load or as late as the
first encode. Every rule here is one of those, or a bound that keeps memory in hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qh_runtime.checkpoints.files import read_small_file, resolve_file
from qh_runtime.checkpoints.strict_json import parse_object, quoted
from qh_runtime.errors import CheckpointError, TokenizerError

__all__ = [
    "MAX_FILE_BYTES",
    "check_tokenizer",
    "read_file",
    "read_json_object",
    "read_tokenizer_file",
]

MAX_FILE_BYTES = 64 << 20
MAX_SIDE_FILE_BYTES = 4 << 20  # tokenizer_config.json holds a chat template of up to 256 KiB
MAX_TOKEN_ID = 1 << 21
MAX_DEPTH = 32
MAX_TOKEN_BYTES = 64 << 10
_MAX_SHOWN = 120
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


def _fail(path: Path, field: str, expected: str, found: object) -> TokenizerError:
    shown = _shown(found)
    return TokenizerError(
        f"{path.name}: {field}: expected {expected}, found {shown}",
        hint="the file is damaged or made to do harm; download the tokenizer again",
        path=str(path),
        field=field,
        expected=expected,
        found=shown,
    )


def _shown(value: object) -> str:
    """A value of the file, or words about it, short and printable."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    is_plain = isinstance(value, str) and len(value) <= _MAX_SHOWN and value.isprintable()
    return str(value) if is_plain else quoted(value)


def read_file(folder: Path, name: str, limit_bytes: int) -> str | None:
    """Return the text of a file of a model folder, None where it has no such entry.

    Args:
        limit_bytes: larger files are refused unread.

    Raises:
        TokenizerError: a link that leaves the folder or leads nowhere, no regular file, unreadable,
            too large, or not UTF-8. Facts: path, field, expected, found.
    """
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return None
    try:
        raw = read_small_file(resolve_file(folder, name), limit_bytes, path)
    except CheckpointError as error:
        raise TokenizerError(
            error.message,
            hint=error.hint or "download the file again",
            path=str(path),
            field="file size" if "expected" in error.facts else "file",
            expected=error.facts.get("expected", "a readable file of the folder"),
            found=error.facts.get("found", error.message),
        ) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte {error.start} that is not"
        raise _fail(path, "content", "UTF-8", found) from error


def read_json_object(
    folder: Path, name: str, limit_bytes: int = MAX_SIDE_FILE_BYTES
) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder; {} where it has no such entry.

    Raises:
        TokenizerError: as `read_file`, or not JSON, too deep, or not an object. Facts: path, field,
            expected, found.
    """
    text = read_file(folder, name, limit_bytes)
    return {} if text is None else _object_in(text, folder / name, MAX_DEPTH)


def read_tokenizer_file(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the checked tokenizer.json of a model folder, parsed and as the text it is.

    Whoever needs the file again takes the text: by then the file may be another one.

    Raises:
        TokenizerError: missing, or breaks a rule. Facts: path, field, expected, found.
    """
    path = folder / "tokenizer.json"
    text = read_file(folder, path.name, MAX_FILE_BYTES)
    if text is None:
        raise TokenizerError(
            f"{folder.name}: expected tokenizer.json, found none",
            hint="export the tokenizer in its fast form (tokenizer.json) into the model folder",
            path=str(path),
            field="file",
            expected="tokenizer.json",
            found=None,
        )
    # Its parts are looked at below, and the library refuses broken characters.
    data = _object_in(text, path, None)
    check_tokenizer(data, path)
    return data, text


def _object_in(text: str, path: Path, max_depth: int | None) -> dict[str, Any]:
    try:
        return parse_object(text, path.name, path=path, max_depth=max_depth)
    except CheckpointError as error:
        field = "nesting" if error.facts["rule"] == "depth" else "content"
        reason = error.message.removeprefix(f"{path.name}: ")[:200]
        raise _fail(path, field, "a strict JSON object", reason) from error


def check_tokenizer(data: dict[str, Any], path: Path) -> None:
    """Check a parsed tokenizer.json against the rules of this module.

    Raises:
        TokenizerError: the first broken rule. Facts: path, field, expected, found.
    """
    for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = data.get(key)
        if part is not None and not isinstance(part, dict):
            raise _fail(path, key, "an object or null", type(part).__name__)
        _check_depth(part, path, key)
    model = data.get("model")
    if not isinstance(model, dict):
        raise _fail(path, "model", "an object", type(model).__name__)
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind not in _MODELS:
        raise _fail(path, "model.type", f"one of {', '.join(_MODELS)}", kind)
    vocab = _unigram_vocab(model, path) if kind == "Unigram" else _vocab(model, path)
    if kind == "BPE":
        _check_bpe(model, vocab, path)
    elif kind in ("WordLevel", "WordPiece"):
        unk = model.get("unk_token")
        if unk not in vocab:
            raise _fail(path, "model.unk_token", "a token of the vocabulary", unk)
    added = _check_added(data.get("added_tokens", []), path)
    _check_replace(data, path)
    _check_post_processor(data.get("post_processor"), vocab.keys() | added, path)


def _check_depth(value: object, path: Path, field: str) -> None:
    stack: list[tuple[object, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise _fail(path, field, f"at most {MAX_DEPTH} levels", "more")
        if isinstance(item, dict):
            stack.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list):
            stack.extend((child, depth + 1) for child in item)


def _vocab(model: dict[str, Any], path: Path) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise _fail(path, "model.vocab", "an object of token: id", type(vocab).__name__)
    ids = set()
    for token, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < MAX_TOKEN_ID:
            raise _fail(path, f"model.vocab[{token[:40]!r}]", "an id in 0..2^21-1", token_id)
        ids.add(token_id)
    if len(ids) != len(vocab):
        raise _fail(path, "model.vocab", "unique ids", f"{len(vocab) - len(ids)} repeated")
    longest = max(vocab, key=len)
    if len(longest) > MAX_TOKEN_BYTES:
        raise _fail(path, "model.vocab", f"tokens up to {MAX_TOKEN_BYTES}", len(longest))
    return vocab


def _unigram_vocab(model: dict[str, Any], path: Path) -> dict[str, int]:
    entries = model.get("vocab")
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_TOKEN_ID:
        raise _fail(path, "model.vocab", "a list of [token, score]", type(entries).__name__)
    vocab: dict[str, int] = {}
    for index, entry in enumerate(entries):
        good = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        if not good or type(entry[1]) not in (int, float):
            raise _fail(path, f"model.vocab[{index}]", "[token, score]", entry)
        if entry[0] in vocab:
            raise _fail(path, f"model.vocab[{index}]", "unique tokens", entry[0])
        vocab[entry[0]] = index
    unk = model.get("unk_id")
    if not model.get("byte_fallback") and (type(unk) is not int or not 0 <= unk < len(vocab)):
        raise _fail(path, "model.unk_id", f"an id in 0..{len(vocab) - 1}", unk)
    if unk is not None and (type(unk) is not int or not 0 <= unk < len(vocab)):
        raise _fail(path, "model.unk_id", f"an id in 0..{len(vocab) - 1}", unk)
    return vocab


def _check_bpe(model: dict[str, Any], vocab: dict[str, int], path: Path) -> None:
    prefix = model.get("continuing_subword_prefix") or ""
    if not isinstance(prefix, str):
        raise _fail(path, "model.continuing_subword_prefix", "a string", type(prefix).__name__)
    merges = model.get("merges", [])
    if not isinstance(merges, list):
        raise _fail(path, "model.merges", "a list", type(merges).__name__)
    for index, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2:
            raise _fail(path, f"model.merges[{index}]", "a pair of tokens", merge)
        left, right = pair
        if not isinstance(left, str) or not isinstance(right, str):
            raise _fail(path, f"model.merges[{index}]", "a pair of tokens", merge)
        # The library cuts the prefix off the right side by length, so it has to be there.
        if prefix and not right.startswith(prefix):
            raise _fail(
                path, f"model.merges[{index}]", f"a right side with {quoted(prefix)}", right
            )
        for token in (left, right, left + right[len(prefix) :]):
            if token not in vocab:
                raise _fail(path, f"model.merges[{index}]", "tokens of the vocabulary", token)
    unk = model.get("unk_token")
    if unk is not None and not (isinstance(unk, str) and unk in vocab):
        raise _fail(path, "model.unk_token", "null or a token of the vocabulary", unk)


def _check_added(added: object, path: Path) -> set[str]:
    if not isinstance(added, list):
        raise _fail(path, "added_tokens", "a list", type(added).__name__)
    ids: set[int] = set()
    contents: set[str] = set()
    for index, token in enumerate(added):
        field = f"added_tokens[{index}]"
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise _fail(path, field, "an object with content and id", token)
        token_id, content = token.get("id"), token["content"]
        if type(token_id) is not int or not 0 <= token_id < MAX_TOKEN_ID:
            raise _fail(path, f"{field}.id", "an id in 0..2^21-1", token_id)
        if not content or len(content) > 512:
            raise _fail(path, f"{field}.content", "1..512 characters", len(content))
        if token_id in ids or content in contents:
            raise _fail(path, field, "unique ids and contents", content)
        ids.add(token_id)
        contents.add(content)
    return contents


def _check_replace(data: dict[str, Any], path: Path) -> None:
    """Refuse empty patterns: they match between all characters and overrun the offsets table."""
    stack: list[object] = [data.get("normalizer"), data.get("pre_tokenizer"), data.get("decoder")]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            pattern = item.get("pattern")
            if isinstance(pattern, dict) and "" in (pattern.get("String"), pattern.get("Regex")):
                raise _fail(
                    path, f"{_shown(item.get('type'))}.pattern", "a pattern", "an empty one"
                )
            stack.extend(item.values())


def _check_post_processor(part: object, tokens: set[str], path: Path) -> None:
    if not isinstance(part, dict):
        return
    if part.get("type") == "Sequence":
        steps = part.get("processors")
        for step in steps if isinstance(steps, list) else []:
            _check_post_processor(step, tokens, path)
    if part.get("type") != "TemplateProcessing":
        return
    table = part.get("special_tokens")
    table = table if isinstance(table, dict) else {}
    for name in ("single", "pair"):
        pieces = part.get(name)
        for piece in pieces if isinstance(pieces, list) else []:
            special = piece.get("SpecialToken") if isinstance(piece, dict) else None
            if special is None:
                continue
            token = special.get("id") if isinstance(special, dict) else None
            if not isinstance(token, str) or token not in table:
                raise _fail(path, f"post_processor.{name}", "a listed special token", token)
    for token, entry in table.items():
        names = entry.get("tokens") if isinstance(entry, dict) else None
        ids = entry.get("ids") if isinstance(entry, dict) else None
        if not isinstance(names, list) or not isinstance(ids, list) or len(names) != len(ids):
            raise _fail(path, f"post_processor.special_tokens[{token[:40]!r}]", "ids", entry)
        for inner in names:
            if not isinstance(inner, str) or inner not in tokens:
                raise _fail(path, "post_processor.special_tokens", "known tokens", inner)
        for token_id in ids:
            if type(token_id) is not int or not 0 <= token_id < MAX_TOKEN_ID:
                raise _fail(path, "post_processor.special_tokens", "ids below 2^21", token_id)
