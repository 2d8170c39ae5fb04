"""Finds a model's chat template and makes its source one that minijinja reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qh_runtime.errors import TemplateError, TokenizerError
from qh_runtime.tokenizers.tokenizer_file import read_file, read_json_object

__all__ = ["MAX_SOURCE_BYTES", "PLAIN_SOURCE", "TemplateSource", "find_template", "portable_source"]

MAX_SOURCE_BYTES = 256 << 10

# The stated default for base models, which were never taught a chat format: a plain transcript.
# bos first where the tokenizer adds one to raw text.
PLAIN_SOURCE = (
    "{% if add_bos %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}User: {{ message.content }}\n\n"
    "{% else %}Assistant: {{ message.content }}\n\n"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

TemplateKind = Literal["file", "config", "plain"]


@dataclass(frozen=True)
class TemplateSource:
    """A chat template and where it is from.

    Attributes:
        kind: "file" (chat_template.jinja), "config" (tokenizer_config.json) or "plain": the model
            has none and gets the plain transcript.
        name: file name, for messages.
        text: Jinja source.
    """

    kind: TemplateKind
    name: str
    text: str


def find_template(folder: Path) -> TemplateSource:
    """Return the template of a model folder: chat_template.jinja, else tokenizer_config.json.

    Of several named templates "default" is taken, or the only one.

    Raises:
        TemplateError: unreadable, too large, or of a wrong type. Facts: reason, template.
        TokenizerError: tokenizer_config.json is malformed.
    """
    text = _read_source(folder, "chat_template.jinja")
    if text is not None:
        return TemplateSource("file", "chat_template.jinja", text)
    for name in ("tokenizer_config.json", "chat_template.json"):
        value = read_json_object(folder, name).get("chat_template")
        if value is not None:
            return _checked(TemplateSource("config", name, _choose(value, name)))
    return TemplateSource("plain", "plain transcript", PLAIN_SOURCE)


def _read_source(folder: Path, name: str) -> str | None:
    try:
        return read_file(folder, name, MAX_SOURCE_BYTES)
    except TokenizerError as error:
        if error.facts["field"] == "file size":
            raise _too_large(name, str(error.facts["found"])) from error
        reason = error.message.removeprefix(f"{name}: ").removeprefix(f"'{name}': ")
        raise _bad(name, reason) from error


def _choose(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    named: dict[str, str] = {}
    for entry in value if isinstance(value, list) else []:
        if isinstance(entry, Mapping):
            key, text = entry.get("name"), entry.get("template")
            if isinstance(key, str) and isinstance(text, str):
                named[key] = text
    if isinstance(value, Mapping):
        named = {str(key): text for key, text in value.items() if isinstance(text, str)}
    if "default" in named:
        return named["default"]
    if len(named) == 1:
        return next(iter(named.values()))
    found = ", ".join(sorted(named)[:8]) or type(value).__name__
    raise _bad(name, f"chat_template: expected one template or one named default, found {found}")


def _checked(source: TemplateSource) -> TemplateSource:
    size = len(source.text.encode("utf-8", "surrogatepass"))
    if size > MAX_SOURCE_BYTES:
        raise _too_large(source.name, str(size))
    return source


def _bad(name: str, what: str) -> TemplateError:
    return TemplateError(
        f"{name}: {what}",
        hint="correct the file, or take it out of the folder: --raw works without a template",
        template=name,
        reason="source",
    )


def _too_large(name: str, found: str) -> TemplateError:
    return TemplateError(
        f"{name}: chat template: expected at most {MAX_SOURCE_BYTES} bytes, found {found}",
        hint="no known model needs that much; use another copy of the model",
        template=name,
        reason="source",
        expected=MAX_SOURCE_BYTES,
        found=found,
    )


def portable_source(text: str) -> str:
    """Return a source in which {% generation %} blocks are plain scopes.

    The tag marks what an assistant wrote, for training; for a chat its body is just output. jinja2
    runs it as a scope of its own, and so does {% with %}.
    """
    if "generation" not in text:
        return text
    parts: list[str] = []
    last = 0
    for start, end in _tags(text):
        word = text[start:end].strip("{%}-+ \t\r\n")
        new = {"generation": "with", "endgeneration": "endwith"}.get(word)
        if new is not None:
            parts += (text[last:start], text[start:end].replace(word, new))
            last = end
    parts.append(text[last:])
    return "".join(parts)


def _tags(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of every {% ... %} outside of comments, outputs and raw blocks."""
    tags: list[tuple[int, int]] = []
    at = 0
    raw = False
    while (at := text.find("{", at)) >= 0:
        opener = text[at : at + 2]
        if opener == "{#" and not raw:
            end = text.find("#}", at + 2)
            at = len(text) if end < 0 else end + 2
        elif opener == "{{" and not raw:
            at = _skip(text, at + 2, "}}")
        elif opener == "{%":
            end = _skip(text, at + 2, "%}")
            word = text[at:end].strip("{%}-+ \t\r\n")
            if raw:
                if word != "endraw":
                    at += 2
                    continue
                raw = False
            elif word == "raw":
                raw = True
            else:
                tags.append((at, end))
            at = end
        else:
            at += 1
    return tags


def _skip(text: str, at: int, closer: str) -> int:
    """Return the offset behind closer, not looking into string literals."""
    quote: Any = None
    while at < len(text):
        char = text[at]
        if quote is not None:
            if char == "\\":
                at += 1
            elif char == quote:
                quote = None
        elif char in "'\"":
            quote = char
        elif text.startswith(closer, at):
            return at + len(closer)
        at += 1
    return len(text)
