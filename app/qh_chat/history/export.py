"""Writes one conversation as Markdown (the path shown) or JSON (all branches)."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from qh_chat.history.records import ConversationRecord, MessageRecord

__all__ = ["as_json", "as_markdown", "export_path", "write_export"]


def as_markdown(record: ConversationRecord, path: Sequence[MessageRecord]) -> str:
    """The path as Markdown, with who said it as headings."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created_at))
    lines = [f"# {record.title}", "", f"{when}", ""]
    if record.system_prompt.strip():
        lines += ["## System", "", record.system_prompt, ""]
    for message in path:
        who = "You" if message.role == "user" else message.model or "Assistant"
        end = " (partial)" if message.state != "complete" else ""
        lines += [f"## {who}{end}", "", message.content, ""]
    return "\n".join(lines)


def as_json(record: ConversationRecord, messages: Sequence[MessageRecord]) -> str:
    """Everything that is kept of a conversation, as one JSON object."""
    found = asdict(record)
    found["format"] = "qh-chat conversation 1"
    found["messages"] = [asdict(message) for message in messages]
    return json.dumps(found, indent=2, ensure_ascii=False)


def export_path(folder: Path, record: ConversationRecord, suffix: str) -> Path:
    """A name made of the title; one that is there already is never overwritten."""
    stem = re.sub(r"[^\w-]+", "-", record.title, flags=re.ASCII).strip("-").lower()[:40] or "chat"
    path = folder / f"{stem}-{record.id}.{suffix}"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{record.id}-{number}.{suffix}"
    return path


def write_export(path: Path, text: str) -> None:
    """Write the file with mode 0600 in a folder with mode 0700. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
