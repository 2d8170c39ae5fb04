"""`qh-chat run`: one answer on standard output, everything else on standard error.

Text goes to a terminal without control characters (`inert`), to a pipe exactly as generated, UTF-8;
an answer that does not end with a newline is given one. With --json each event is one object a
line, flushed at once. An interrupted answer keeps what was generated.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Generator
from typing import Any

from qh_chat.commands.answering import Interrupted, LoadFunction, answer_events
from qh_chat.commands.arguments import OVERRIDES
from qh_chat.commands.context import Context
from qh_chat.commands.offer import offer_missing_model
from qh_chat.commands.output import JsonOutput, Output, TextOutput
from qh_runtime.errors import ContextLengthError, QhError, SessionError
from qh_runtime.session.events import Done, Message

__all__ = ["run"]

# What a person can mean to type or pipe; a longer text is a file given by mistake. Half of what a
# chat template may write, so that what is allowed here is never too long there.
_MAX_PROMPT_BYTES = 2 << 20


def run(args: argparse.Namespace, context: Context, load: LoadFunction | None = None) -> int:
    """Answer the prompt; return the exit code.

    Args:
        load: makes the engine, in place of the store's loader: (name, options, on_progress).
    """
    output: Output = JsonOutput() if args.json else TextOutput(context.environment)
    try:
        with contextlib.closing(_events(args, context, load)) as events:
            for event in events:
                output.show(event)
                _refuse_if_nothing_fits(event)
        output.end()
    except Interrupted as interrupted:
        output.end()
        return interrupted.exit_code
    except QhError as error:
        output.fail(error)
        raise
    return 0


def _events(
    args: argparse.Namespace, context: Context, load: LoadFunction | None
) -> Generator[Any, None, None]:
    """Everything that happens, from the reading of the settings on."""
    settings = context.settings(_overrides(args))
    params = settings.sampling_params()
    if args.stop:
        params = dataclasses.replace(params, stop=tuple(args.stop))
    options = dataclasses.replace(settings.load_options(), force=args.force)
    if options.pack is not None:
        _check_format(options.pack, context)
    prompt = _prompt(args.prompt, context, keep_newline=args.raw)
    messages = [Message("user", prompt)]
    if args.raw and args.system:
        print("qh-chat: --system is left out: --raw has no place for it", file=sys.stderr)
    elif settings.chat.system_prompt and not args.raw:
        messages.insert(0, Message("system", settings.chat.system_prompt))
    name = settings.models.model if args.model is None else args.model
    ended = 0 if load else offer_missing_model(name, args, context, settings)
    if ended:
        raise Interrupted(ended)
    loader = load or context.models(settings).load
    yield from answer_events(
        lambda progress: loader(name, options, progress),
        lambda engine: (
            engine.complete(prompt, params) if args.raw else engine.generate(messages, params)
        ),
    )


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    given = {key: getattr(args, option.replace("-", "_")) for option, key in OVERRIDES.items()}
    return {**given, "models.exact": True if args.exact else None}


def _refuse_if_nothing_fits(event: object) -> None:
    """An answer that could not even begin is a refusal, whatever the context policy."""
    if isinstance(event, Done) and event.reason == "context_full" and event.stats.tokens == 0:
        found, room = event.stats.prompt_tokens, event.stats.context_length
        raise ContextLengthError(
            f"prompt: expected less than the {room} tokens of the context, found {found}",
            hint="shorten it, or ask for more --context",
            prompt_tokens=found,
            context_length=room,
        )


def _check_format(name: str, context: Context) -> None:
    """A wrong --pack is a usage error, before anything is read."""
    from qh_runtime.packing.matrices import pack_formats

    if name not in pack_formats():
        context.usage_error(
            f"argument --pack: expected one of {', '.join(pack_formats())}, found {name!r}"
        )


def _prompt(given: str | None, context: Context, *, keep_newline: bool) -> str:
    """The prompt of the command line or of standard input, checked."""
    if given is None or given == "-":
        text = _read_stdin(context)
        source = "standard input"
    else:
        text = given
        source = "PROMPT"
    if not keep_newline:
        text = text.removesuffix("\n")
    if not text.strip():
        context.usage_error(f"{source}: expected a prompt, found an empty text")
    if len(text.encode()) > _MAX_PROMPT_BYTES:
        raise SessionError(
            f"prompt: expected at most {_MAX_PROMPT_BYTES >> 20} MiB, found more",
            hint="shorten it",
            expected=_MAX_PROMPT_BYTES,
        )
    return text


def _read_stdin(context: Context) -> str:
    if sys.stdin is None:
        context.usage_error("no PROMPT given, and standard input is closed")
    if sys.stdin.isatty():
        print("Type your prompt, then ctrl+d.", file=sys.stderr, flush=True)
    data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 2)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(data) > _MAX_PROMPT_BYTES and error.start > len(data) - 4:
            # Cut in the middle of a character; the length is refused by the caller.
            return data[: error.start].decode("utf-8")
        context.usage_error(f"standard input: expected UTF-8, found another byte at {error.start}")
