"""The options of every command. Prose, ranges and defaults come from the settings' own fields."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from qh_chat.settings import SettingsError, SettingSpec, parse_value, specs

__all__ = [
    "OVERRIDES",
    "add_bench",
    "add_chat",
    "add_import",
    "add_json",
    "add_prune",
    "add_pull",
    "add_rm",
    "add_run",
    "add_show",
    "add_verify",
]

# Option -> the setting it stands in for, in the order of --help.
OVERRIDES = {
    "temp": "sampling.temperature",
    "top-p": "sampling.top_p",
    "top-k": "sampling.top_k",
    "min-p": "sampling.min_p",
    "max-tokens": "sampling.max_tokens",
    "seed": "sampling.seed",
    "repetition-penalty": "sampling.repetition_penalty",
    "presence-penalty": "sampling.presence_penalty",
    "frequency-penalty": "sampling.frequency_penalty",
    "penalty-window": "sampling.penalty_window",
    "system": "chat.system_prompt",
    "context-policy": "chat.context_policy",
    "threads": "models.threads",
    "context": "models.context_length",
    "pack": "models.pack",
    "kv": "models.kv_cache",
}
_METAVARS = {"system": "TEXT", "pack": "FORMAT", "context": "TOKENS", "max-tokens": "N"}


def load_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say of how a model is loaded, by the setting's key; None: nothing."""
    return {OVERRIDES[option]: getattr(args, option) for option in ("pack", "context", "kv")}


def add_json(parser: argparse.ArgumentParser) -> None:
    """The one option of commands that only report."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Options of `chat`."""
    _add_model(parser)
    _add_settings(parser, "threads", "context", "pack", "kv")
    _add_load_switches(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Options of `run`."""
    parser.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        type=_prompt_text,
        help="what to answer; none or - reads standard input",
    )
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print events, one JSON object a line")
    parser.add_argument("--raw", action="store_true", help="continue the text, no chat template")
    _add_settings(parser, *OVERRIDES)
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        type=_some_text,
        help="a text that ends the answer and is left out of it; may be repeated",
    )
    _add_load_switches(parser)


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Options of `bench`. Names are checked by the command, which knows them."""
    parser.add_argument(
        "kinds",
        nargs="*",
        metavar="KIND",
        type=_some_text,
        help="kernels, decode, prefill or load; none is all of them",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument("--plot", metavar="FILE", type=_some_text, help="write an SVG picture too")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="parts of large shapes, fewer formats and rounds; ends within 50 s",
    )
    names = {
        "shapes": "builtin, bitnet-2b-4t, llama-3.2-1b, llama-3-8b; default all",
        "formats": "of the linear layers; default all packed formats of a shape's kind",
        "isa": "instruction sets, or all; default the one that is used",
    }
    for option, prose in names.items():
        alias = ["--shape"] if option == "shapes" else []
        parser.add_argument(
            f"--{option}", *alias, metavar="NAME,...", type=_names, default=None, help=prose
        )
    numbers = {
        "threads": ("threads", 1024, "default one and as many as the settings say"),
        "context": ("contexts", 1 << 20, "tokens in the cache at which to decode; default 256"),
        "batch": ("kernel_tokens", 4096, "tokens that kernels multiply at once; default 1"),
    }
    for option, (dest, most, prose) in numbers.items():
        parser.add_argument(
            f"--{option}", dest=dest, metavar="N,...", type=_numbers(most), default=None, help=prose
        )
    parser.add_argument(
        "--rounds", metavar="N", type=_numbers(1000, single=True), default=None, help="of each row"
    )
    parser.add_argument(
        "--vs", metavar="PEER", choices=("llama.cpp",), help="take turns with it: llama.cpp"
    )
    parser.add_argument(
        "--peer-python",
        metavar="PATH",
        type=_some_text,
        help="a Python that has llama-cpp-python; default this one",
    )


def add_pull(parser: argparse.ArgumentParser) -> None:
    """Options of `pull`."""
    parser.add_argument(
        "repo", metavar="ORG/MODEL[@REVISION]", type=_some_text, help="as on the model's page"
    )
    parser.add_argument(
        "--artifact",
        metavar="NAME",
        type=_some_text,
        help="which of several sets of weights: a folder of the repository",
    )
    parser.add_argument(
        "--newest",
        action="store_true",
        help="give up the commit of an unfinished pull for the present one",
    )
    parser.add_argument(
        "--endpoint", metavar="URL", type=_some_text, help="another hub than that of HF_ENDPOINT"
    )
    limit = specs()["models.download_limit_mb_s"]
    parser.add_argument("--limit-rate", metavar="MB/S", type=_reader(limit), help=_help(limit))
    _add_fetch(parser)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Options of `import`."""
    parser.add_argument(
        "path",
        metavar="PATH",
        type=_some_text,
        help="a folder in Hugging Face layout, or one of a hub cache (models--org--name)",
    )
    parser.add_argument("--name", type=_some_text, help="in the store; else the folder's own")
    _add_fetch(parser)


def add_show(parser: argparse.ArgumentParser) -> None:
    """Options of `show`."""
    _add_name(parser)
    add_json(parser)
    _add_settings(parser, "pack", "context", "kv")


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Options of `verify`."""
    parser.add_argument(
        "name", nargs="*", metavar="NAME", type=_some_text, help="a stored model; none means all"
    )
    parser.add_argument(
        "--repair", action="store_true", help="put right what is damaged; fetches only that"
    )
    parser.add_argument("--json", action="store_true", help="print events, one JSON object a line")


def add_rm(parser: argparse.ArgumentParser) -> None:
    """Options of `rm`."""
    _add_name(parser)
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be removed and freed"
    )
    parser.add_argument(
        "--source",
        action="store_true",
        help="only the weights, whose packed form stays; everything is compared first",
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help="only the packed form, also of a folder of your own; the next load makes it again",
    )
    _add_settings(parser, "pack")
    add_json(parser)


def add_prune(parser: argparse.ArgumentParser) -> None:
    """Options of `prune`."""
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be removed and freed"
    )
    add_json(parser)


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    """What pull and import have in common."""
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    parser.add_argument(
        "--force", action="store_true", help="also if the plan says that it does not fit"
    )
    parser.add_argument("--json", action="store_true", help="print events, one JSON object a line")
    _add_settings(parser, "pack", "context", "kv")


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=_some_text, help="as in qh-chat ls")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        type=_some_text,
        help="name, or folder in Hugging Face layout",
    )


def _add_load_switches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exact", action="store_true", help=specs()["models.exact"].prose.rstrip(".").lower()
    )
    parser.add_argument(
        "--force", action="store_true", help="load although the plan says that it does not fit"
    )


def _add_settings(parser: argparse.ArgumentParser, *options: str) -> None:
    for option in options:
        spec = specs()[OVERRIDES[option]]
        extra: dict[str, Any] = {"choices": spec.choices} if spec.choices else {}
        if not spec.choices:
            extra["metavar"] = _METAVARS.get(option, "N")
        parser.add_argument(
            f"--{option}",
            dest=option.replace("-", "_"),
            type=_reader(spec),
            help=_help(spec),
            **extra,
        )


def _check_text(text: str) -> None:
    """Refuse the lone surrogates that undecodable bytes of a command line become.

    Raises:
        argparse.ArgumentTypeError: it holds one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("expected text, found bytes that are not UTF-8") from None


def _some_text(text: str) -> str:
    _check_text(text)
    if not text:
        raise argparse.ArgumentTypeError("expected a text, found an empty one")
    return text


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them, each once."""
    return tuple(dict.fromkeys(x.strip() for x in _some_text(text).split(",") if x.strip()))


def _numbers(most: int, single: bool = False) -> Callable[[str], tuple[int, ...]]:
    """A type for argparse: whole numbers from 1 up to a most, with commas between them."""

    def read(text: str) -> tuple[int, ...]:
        words = _names(text)
        if not words or (single and len(words) > 1):
            raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
        for word in words:
            if not (word.isascii() and word.isdecimal() and 1 <= int(word[:8]) <= most):
                raise argparse.ArgumentTypeError(f"expected 1 to {most}, found {word}")
        return tuple(int(word) for word in words)

    return read


def _prompt_text(text: str) -> str:
    _check_text(text)
    return text


def _help(spec: SettingSpec) -> str:
    prose = spec.prose.rstrip(".")
    details = [x for x in (spec.range_text, _default(spec)) if x]
    # argparse formats help with %.
    return f"{prose} ({'; '.join(details)})".replace("%", "%%") if details else prose


def _default(spec: SettingSpec) -> str:
    return "" if spec.default in (None, "", ()) else f"default {spec.default}"


def _reader(spec: SettingSpec) -> Callable[[str], object]:
    """A type for argparse: the value in range, or a usage error in the setting's own words."""

    def read(text: str) -> object:
        _check_text(text)
        try:
            return parse_value(spec, text)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(error.message) from None

    return read
