"""Chat templates: messages in, a prompt out, whatever the template and the messages try.

Rendering happens in a short-lived process under kernel limits (`template_worker`): 250 ms of CPU
time, 64 MiB of memory, 5 million units of fuel, 4 MiB of output. The environment is that of
transformers, so prompts are equal to `apply_chat_template` byte for byte.

Message text cannot become control tokens (see `content_guard`). The strategy, in order:
1. no dangerous place in any message (nearly always): the plain render is the prompt;
2. a marked render, every possible place; its text without markers must equal the plain render;
3. fewer places (a template may look for words of its own in a message, "</think>" in an answer):
   exact ones in answers, then everywhere, then without the start of messages;
4. escape: a space goes into every exact place, and `escaped` says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qh_runtime.errors import TemplateError
from qh_runtime.tokenizers.chat_tokenizer import ChatTokenizer, Prompt
from qh_runtime.tokenizers.content_guard import ContentGuard, Marking, split_markers
from qh_runtime.tokenizers.template_source import (
    TemplateKind,
    TemplateSource,
    find_template,
    portable_source,
)

__all__ = ["ChatTemplate", "RenderLimits", "RenderedPrompt", "load_chat_template"]

# What a caller may pass to a template besides messages, tools and documents.
ALLOWED_VARIABLES = frozenset(
    {
        "builtin_tools",
        "date_string",
        "enable_thinking",
        "model_identity",
        "reasoning_effort",
        "thinking",
    }
)
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_MARKINGS = (
    Marking(other="pairs", own="pairs"),
    Marking(other="pairs", own="exact"),
    Marking(other="exact", own="exact"),
    Marking(other="exact", own="exact", edges=False),
)
_WORKER = Path(__file__).with_name("template_worker.py")
# Without its own limits (other platforms) or on a starved machine the process gets this much time.
_WALL_S = 10.0


@dataclass(frozen=True)
class RenderLimits:
    """Budget of one render. cpu_s: processor seconds; the sizes are bytes; fuel is minijinja's."""

    cpu_s: float = 0.25
    memory_bytes: int = 64 << 20
    output_bytes: int = 4 << 20
    fuel: int = 5_000_000


@dataclass(frozen=True)
class RenderedPrompt(Prompt):
    """A prompt from a template. escaped: dangerous places in messages got a space (strategy 4)."""

    escaped: bool = False


class ChatTemplate:
    """One model's chat template, ready to render.

    Args:
        source: the template.
        special_tokens: role -> token string, visible to the template.
        control_tokens: strings that message text must never turn into.
        strict_tokens: the part of them that a model's own earlier answers must not contain either.
        add_bos: for the plain transcript: start with bos.
        limits: budget of one render.
    """

    def __init__(
        self,
        source: TemplateSource,
        *,
        special_tokens: Mapping[str, str],
        control_tokens: Sequence[str],
        strict_tokens: Sequence[str] | None = None,
        add_bos: bool = False,
        limits: RenderLimits | None = None,
    ) -> None:
        self._source = source
        self._text = portable_source(source.text)
        self._special_tokens = dict(special_tokens)
        self._guard = ContentGuard(
            control_tokens, control_tokens if strict_tokens is None else strict_tokens
        )
        self._add_bos = add_bos
        self._limits = limits or RenderLimits()

    @property
    def kind(self) -> TemplateKind:
        """Where the template is from; "plain" means the model has none."""
        return self._source.kind

    @property
    def name(self) -> str:
        """The file it is from, for messages."""
        return self._source.name

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        now: datetime | None = None,
        **variables: Any,
    ) -> RenderedPrompt:
        """Return the prompt of a conversation, with the places where control tokens may not be.

        Args:
            messages: {"role": ..., "content": ...} and what else the template reads; plain JSON.
            add_generation_prompt: whether the prompt ends where the assistant begins.
            tools: JSON schemas of tools.
            documents: documents for retrieval templates.
            now: the local time for templates that print a date.
            **variables: further variables, from `ALLOWED_VARIABLES`.

        Raises:
            TemplateError: the template is wrong, refused the messages, or left its budget. Facts:
                template, reason ("syntax", "refused", "fuel", "time", "memory", "output",
                "render", "crash", "variables"), detail.
        """
        unknown = sorted(variables.keys() - ALLOWED_VARIABLES)
        if unknown:
            raise self._error("variables", f"unknown variables {', '.join(unknown)}")
        data = {
            "messages": [_alias_reasoning(_plain(message)) for message in messages],
            "tools": None if tools is None else _plain(tools),
            "documents": None if documents is None else _plain(documents),
        }
        data = {key: self._guard.clean(value) for key, value in data.items()}
        rest = {
            **self._special_tokens,
            **_plain(variables),
            "add_generation_prompt": add_generation_prompt,
        }
        if self.kind == "plain":
            rest["add_bos"] = self._add_bos
        when = now or datetime.now()
        if not self._guard.has_risk(list(data.values())):
            return RenderedPrompt(self._run([{**data, **rest}], when)[0])
        marker = self._guard.marker(list(data.values()), self._text, rest)
        jobs = [{**data, **rest}]
        for marking in _MARKINGS:
            marked = {k: self._guard.mark(v, marker, marking) for k, v in data.items()}
            jobs.append({**marked, **rest})
        plain, *renders = self._run(jobs, when, keep_going=True)
        for render in renders:
            text, breaks = split_markers(render, marker)
            if text == plain:
                return RenderedPrompt(text, breaks)
        escaped = {key: self._guard.escape(value) for key, value in data.items()}
        return RenderedPrompt(self._run([{**escaped, **rest}], when)[0], escaped=True)

    def _run(
        self, jobs: list[dict[str, Any]], now: datetime, *, keep_going: bool = False
    ) -> list[str]:
        """Return the texts of all jobs; with keep_going only the first must succeed.

        A job after the first that fails (its markers broke the template's logic) gives "\\0", which
        no render equals, so that the next strategy is taken.
        """
        limits = self._limits
        request = {
            "source": self._text,
            "jobs": jobs,
            "now": now.isoformat(),
            "fuel": limits.fuel,
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_bytes,
            "output_limit": limits.output_bytes,
        }
        replies, code = _ask_worker(json.dumps(request).encode("ascii"))
        texts: list[str] = []
        for index in range(len(jobs)):
            reply = replies[index] if index < len(replies) else _death(code)
            text = reply.get("text")
            if isinstance(text, str):
                texts.append(text)
            elif index and keep_going:
                texts.append("\0")
            else:
                raise self._error(str(reply["error"]), str(reply["detail"]), reply.get("line"))
        return texts

    def _error(self, reason: str, detail: str, line: object = None) -> TemplateError:
        limits = self._limits
        expected = {
            "fuel": f"at most {limits.fuel} steps",
            "time": f"at most {limits.cpu_s * 1000:.0f} ms of processor time",
            "memory": f"at most {limits.memory_bytes} bytes of memory",
            "output": f"at most {limits.output_bytes} bytes of output",
            "refused": "a conversation that the template accepts",
        }.get(reason, "a template that renders")
        found = {
            "fuel": "more",
            "time": "more",
            "memory": "more",
            "refused": f"a refusal: {detail}",
        }.get(reason, detail)
        where = f", line {line}" if isinstance(line, int) else ""
        return TemplateError(
            f"{self._source.name}{where}: expected {expected}, found {found}",
            hint=(
                "change the conversation as the template asks (often: no system prompt)"
                if reason == "refused"
                else "correct the template, or use --raw to continue text without it"
            ),
            template=self._source.name,
            reason=reason,
            detail=detail,
            line=line,
        )


def load_chat_template(folder: Path, tokenizer: ChatTokenizer) -> ChatTemplate:
    """Return the chat template of a model folder, or the plain transcript (`kind` "plain").

    Raises:
        TemplateError: the template file breaks a rule; a syntax error shows at the first render.
        TokenizerError: tokenizer_config.json is malformed.
    """
    return ChatTemplate(
        find_template(folder),
        special_tokens=tokenizer.special_tokens,
        control_tokens=tokenizer.control_tokens,
        strict_tokens=tokenizer.strict_tokens,
        add_bos=tokenizer.add_bos,
    )


def _plain(value: Any) -> Any:
    """Return a copy of plain JSON types; anything else is refused before a template can see it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"templates get plain JSON types, not {type(value).__name__}")


def _alias_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Fill the names under which templates look for reasoning, as transformers does."""
    value = next((message[f] for f in _REASONING_FIELDS if message.get(f) is not None), None)
    if value is None:
        return message
    result = dict(message)
    for field in ("reasoning_content", "thinking"):
        if result.get(field) is None:
            result[field] = value
    return result


def _death(code: int) -> dict[str, Any]:
    """Return the reply that a process which ended early stands for."""
    if code == -getattr(signal, "SIGPROF", 27):
        return {"error": "time", "detail": "the render was stopped by its timer"}
    if code == -getattr(signal, "SIGABRT", 6):
        return {"error": "memory", "detail": "the render ran out of memory"}
    return {"error": "crash", "detail": f"the render process ended with status {code}"}


def _ask_worker(request: bytes) -> tuple[list[dict[str, Any]], int]:
    """Run the worker on one request; return its replies and exit status."""
    # Only the worker loads the template engine; here its folder is enough.
    spec = importlib.util.find_spec("minijinja")
    if spec is None or spec.origin is None:
        raise TemplateError(
            "chat template: expected the package minijinja, found none",
            hint="install qh-chat again",
            reason="crash",
            detail="minijinja is not installed",
            template="",
        )
    engine_folder = str(Path(spec.origin).parent.parent)
    keep = ("TZ", "TZDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_WORKER), engine_folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={key: os.environ[key] for key in keep if key in os.environ},
            start_new_session=True,
        )
    except OSError as error:
        raise TemplateError(
            f"chat template: the render process could not start: {error}",
            hint="free memory or raise the limit of processes",
            reason="crash",
            detail=str(error),
            template="",
        ) from error
    with process:
        try:
            output, _ = process.communicate(request, timeout=_WALL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            code = -getattr(signal, "SIGPROF", 27)
        except BaseException:
            process.kill()
            raise
        else:
            code = process.returncode
    replies: list[dict[str, Any]] = []
    for line in output.split(b"\n")[:-1]:
        try:
            replies.append(json.loads(line.decode("utf-8", "surrogatepass")))
        except ValueError:
            break
    return replies, code
