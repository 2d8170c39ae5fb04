"""`qh-chat run` in processes of its own: text, JSON lines, exit codes, standard input, settings."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import command, json_lines, qh_environment, run_qh, write_tiny_model

FAST = ("--temp", "0", "--max-tokens", "12", "--context", "128")
STATS_KEYS = {
    "prompt_tokens": int,
    "tokens": int,
    "prefill_s": float,
    "decode_s": float,
    "first_token_s": float,
    "tokens_per_s": float,
    "seed": int,
    "context_used": int,
    "context_length": int,
    "reason": str,
}


def test_text_goes_to_stdout_and_nothing_else_does(home: Path, tiny_model: Path) -> None:
    done = run_qh(home, "run", "-m", str(tiny_model), "--raw", *FAST, "hello")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\n")
    assert len(done.stdout) > 12


def test_json_lines(home: Path, tiny_model: Path) -> None:
    done = run_qh(home, "run", "-m", str(tiny_model), "--raw", "--json", *FAST, "hello")
    assert done.returncode == 0, done.stderr
    events = json_lines(done.stdout)
    kinds = [event["type"] for event in events]
    assert set(kinds) <= {"loading", "model", "progress", "trimmed", "token", "stats"}
    assert kinds[-1] == "stats"
    assert kinds.index("model") < kinds.index("token")
    tokens = [event for event in events if event["type"] == "token"]
    for event in tokens:
        assert set(event) == {"type", "id", "text"}
        assert isinstance(event["id"], int)
    stats = events[-1]
    for key, kind in STATS_KEYS.items():
        assert isinstance(stats[key], kind), key
    assert stats["tokens"] == len(tokens) == 12
    assert stats["reason"] == "max_tokens"
    assert stats["first_token_s"] >= stats["prefill_s"] > 0


def test_json_text_equals_plain_text(home: Path, tiny_model: Path) -> None:
    common = ("run", "-m", str(tiny_model), "--raw", *FAST, "one two")
    plain = run_qh(home, *common).stdout
    events = json_lines(run_qh(home, *common, "--json").stdout)
    text = "".join(event["text"] for event in events if event["type"] == "token")
    assert plain == (text if text.endswith("\n") else text + "\n").encode()


@pytest.mark.slow
def test_greedy_is_repeatable_and_a_seed_fixes_the_dice(home: Path, tiny_model: Path) -> None:
    def ids(*options: str) -> list[int]:
        common = ("run", "-m", str(tiny_model), "--raw", "--json", "--max-tokens", "24")
        done = run_qh(home, *common, "--context", "128", *options, "word")
        assert done.returncode == 0, done.stderr
        return [event["id"] for event in json_lines(done.stdout) if event["type"] == "token"]

    assert ids("--temp", "0") == ids("--temp", "0")
    wide = ("--temp", "2", "--top-k", "0", "--top-p", "1", "--min-p", "0")
    assert ids(*wide, "--seed", "7") == ids(*wide, "--seed", "7")
    assert ids(*wide, "--seed", "7") != ids(*wide, "--seed", "8")
    # Greedy whatever the seed: the likeliest token is the only candidate.
    assert ids("--temp", "2", "--top-k", "1", "--seed", "3") == ids("--temp", "0")


@pytest.mark.parametrize("prompt", [(), ("-",)])
def test_prompt_from_standard_input(home: Path, tiny_model: Path, prompt: tuple[str, ...]) -> None:
    common = ("run", "-m", str(tiny_model), *FAST)
    piped = run_qh(home, *common, *prompt, stdin="f\u00fcr dich\n".encode())
    given = run_qh(home, *common, "f\u00fcr dich")
    assert (piped.returncode, given.returncode) == (0, 0), piped.stderr
    assert piped.stdout == given.stdout


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("",), None),
        (("  \n ",), None),
        ((), b""),
        (("-",), b"\n"),
        ((), b"\xff\xfe"),
        (("--temp", "9", "x"), None),
        (("--temp", "nan", "x"), None),
        (("--top-k", "-1", "x"), None),
        (("--threads", "0", "x"), None),
        (("--max-tokens", "0", "x"), None),
        (("--seed", "-1", "x"), None),
        (("--pack", "int3", "x"), None),
        (("--kv", "int4", "x"), None),
        (("--no-such-option", "x"), None),
        (("a", "b"), None),
        (("-m", "", "x"), None),
        (("-m", "\udcff", "x"), None),
        (("--stop", "", "x"), None),
        (("--stop", "\udcff", "x"), None),
        (("--system", "\udcff", "x"), None),
        (("\udcff",), None),
        (("--no\x1b[2J-such-option", "x"), None),
    ],
)
def test_usage_errors_are_2(
    home: Path, tiny_model: Path, arguments: tuple[str, ...], stdin: bytes | None
) -> None:
    done = run_qh(home, "run", "-m", str(tiny_model), *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"qh-chat run: error: ")
    assert done.stderr.count(b"\n") == 1
    assert b"qh-chat run --help" in done.stderr
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("-m", "no-such-model", "x"), "ModelNotFoundError"),
        (("-m", "org/repo", "x"), "ModelNotFoundError"),
        (("-m", "TINY", "--context", "99999", "x"), "PlanError"),
        (("-m", "TINY", "--context", "16", "x" * 900), "ContextLengthError"),
        (
            ("-m", "TINY", "--context", "16", "--context-policy", "stop", "x" * 900),
            "ContextLengthError",
        ),
    ],
)
def test_refusals_are_3_with_one_line_and_an_error_event(
    home: Path, tiny_model: Path, arguments: tuple[str, ...], kind: str
) -> None:
    given = [str(tiny_model) if x == "TINY" else x for x in arguments]
    done = run_qh(home, "run", "--json", *given)
    assert done.returncode == 3
    assert done.stderr.count(b"\n") == 1
    error = json_lines(done.stdout)[-1]
    assert error["type"] == "error"
    assert error["hint"]
    assert error["error"] == kind


def test_refused_settings_are_an_error_event_too(home: Path, tiny_model: Path) -> None:
    (home / "settings.toml").write_text("[sampling]\nmax_tokns = 5\n")
    done = run_qh(home, "run", "--json", "-m", str(tiny_model), "x")
    assert done.returncode == 3
    assert done.stderr.count(b"\n") == 1
    (error,) = json_lines(done.stdout)
    assert (error["type"], error["error"]) == ("error", "SettingsError")
    (home / "settings.toml").unlink()
    long = run_qh(home, "run", "--json", "-m", str(tiny_model), stdin=b"x" * (3 << 20))
    assert long.returncode == 3
    assert json_lines(long.stdout)[-1]["error"] == "SessionError"


def test_no_memory_left_is_a_refusal_and_no_bug(home: Path, tiny_model: Path) -> None:
    """Found while loading, by whatever asks for the first byte too many."""
    line = shlex.join(command("run", "--json", "--force", "-m", str(tiny_model), "x"))
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_MEMORY, line],
        env=qh_environment(home),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.count(b"\n") == 1
    assert b"memory" in done.stderr
    assert b"bug" not in done.stderr
    error = json_lines(done.stdout)[-1]
    assert error["type"] == "error"
    assert error["hint"]


_WITHOUT_MEMORY = """
import shlex, sys
from qh_chat import cli
from qh_runtime import loader
def plan_model(*arguments):
    return bytearray(1 << 62)
loader.plan_model = plan_model
sys.exit(cli.main(shlex.split(sys.argv[1])[3:]))
"""


def test_too_little_memory_is_refused_with_the_sums(home: Path, tmp_path: Path) -> None:
    """A limit of the address space is what a test can set without rights."""
    # Its float32 cache of 65,536 tokens takes 1.6 GB.
    model = write_tiny_model(
        tmp_path / "wide",
        num_hidden_layers=12,
        hidden_size=256,
        num_key_value_heads=4,
        max_position_embeddings=65536,
    )
    arguments = ["run", "-m", str(model), "--json", "--exact", "--max-tokens", "2", "x"]

    def limited(*more: str) -> subprocess.CompletedProcess[bytes]:
        line = shlex.join(command(*arguments, *more))
        return subprocess.run(
            ["bash", "-c", f"ulimit -v 1500000; exec {line}"],
            env=qh_environment(home),
            capture_output=True,
            timeout=60,
            check=False,
        )

    refused = limited("--context", "65536")
    assert refused.returncode == 3, refused.stderr
    error = json_lines(refused.stdout)[-1]
    facts = error["facts"]
    assert error["error"] == "DoesNotFitError"
    assert facts["required_bytes"] == facts["plan"]["total_bytes"]
    assert facts["required_bytes"] > facts["available_bytes"]
    option, value = facts["alternatives"][0].split()
    taken = limited(option, value)
    assert taken.returncode == 0, taken.stderr
    # Whatever the system then says, it is one clear line and no crash.
    forced = limited("--context", "65536", "--force")
    assert forced.returncode in (0, 3), forced.stderr
    assert forced.stderr.count(b"\n") <= 1


def test_a_broken_checkpoint_names_the_file(home: Path, tiny_model: Path) -> None:
    broken = home / "broken"
    broken.mkdir()
    for file in tiny_model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    done = run_qh(home, "run", "--json", "-m", str(broken), "x")
    assert done.returncode == 3
    assert b"model.safetensors" in done.stderr
    error = json_lines(done.stdout)[-1]
    assert error["error"] == "CheckpointError"
    assert error["facts"]["rule"] == "header length"
    assert error["hint"]


def test_a_file_is_not_its_folder(home: Path, tiny_model: Path) -> None:
    done = run_qh(home, "run", "--json", "-m", str(tiny_model / "model.safetensors"), "x")
    assert done.returncode == 3
    assert "found a file" in json_lines(done.stdout)[-1]["message"]
    assert str(tiny_model) in json_lines(done.stdout)[-1]["hint"]
    missing = run_qh(home, "run", "--json", "-m", str(tiny_model / "nothing"), "x")
    assert "found nothing" in json_lines(missing.stdout)[-1]["message"]


def test_weights_that_are_cut_short_meanwhile_end_the_answer_with_one_line(home: Path) -> None:
    """And not the process with a signal; what was said before is kept."""
    model = write_tiny_model(home / "model", max_position_embeddings=65536)
    arguments = command("run", "-m", str(model), "--raw", "--json", "--context", "65536")
    arguments += ["--temp", "0", "hello"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=qh_environment(home)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(30)]
        for path in (model / "model.safetensors", *(home / "cache").rglob("*.safetensors")):
            os.truncate(path, 100)
        lines += process.stdout.readlines()
        errors = process.stderr.read()
    assert process.returncode == 3, errors
    assert errors.count(b"\n") == 1
    assert b".safetensors" in errors
    events = json_lines(b"".join(lines))
    assert sum(x["type"] == "token" for x in events) >= 10
    assert (events[-1]["type"], events[-1]["error"]) == ("error", "CheckpointError")


def test_the_settings_file_and_environment_apply_in_order(home: Path, tiny_model: Path) -> None:
    (home / "settings.toml").write_text(
        f'[models]\nmodel = "{tiny_model}"\nthreads = 1\n[sampling]\nmax_tokens = 5\n'
        "temperature = 0.0\n"
    )
    common = ("run", "--raw", "--json", "--context", "128", "hello")
    events = json_lines(run_qh(home, *common).stdout)
    assert events[-1]["tokens"] == 5
    assert next(e for e in events if e["type"] == "model")["threads"] == 1
    assert json_lines(run_qh(home, *common, "--max-tokens", "3").stdout)[-1]["tokens"] == 3
    bad = run_qh(home, *common, QH_THREADS="many")
    assert bad.returncode == 3
    assert b"QH_THREADS" in bad.stderr
    (home / "settings.toml").write_text("[sampling]\nmax_tokns = 5\n")
    unknown = run_qh(home, *common)
    assert unknown.returncode == 3
    assert b"max_tokens" in unknown.stderr


def test_no_model_at_all_has_a_next_step(home: Path) -> None:
    """Run where neither a package nor a source tree provides a built-in model, or answer."""
    done = run_qh(home, "run", "--max-tokens", "2", "x")
    assert done.returncode in (0, 3)
    assert done.returncode == 0 or b"-m" in done.stderr


def test_the_log_has_the_start_and_never_the_prompt(home: Path, tiny_model: Path) -> None:
    done = run_qh(home, "run", "-m", str(tiny_model), *FAST, "xyzzy-secret", QH_LOG="debug")
    assert done.returncode == 0
    log = (home / "logs" / "qh-chat.log").read_text()
    assert "tiny" in log
    assert "threads" in log
    assert "xyzzy" not in log
    assert (home / "logs" / "qh-chat.log").stat().st_mode & 0o777 == 0o600


def test_an_unwritable_log_is_a_warning_and_not_an_end(home: Path, tiny_model: Path) -> None:
    (home / "logs").write_text("in the way")
    done = run_qh(home, "run", "-m", str(tiny_model), "--raw", *FAST, "hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert b"warning: log" in done.stderr


def test_an_unwritable_cache_packs_in_memory_and_says_so(home: Path, tiny_model: Path) -> None:
    (home / "cache").write_text("in the way")
    done = run_qh(home, "run", "-m", str(tiny_model), "--raw", *FAST, "hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert b"packed weights are not kept" in done.stderr


def test_a_bad_log_level_is_refused(home: Path, tiny_model: Path) -> None:
    done = run_qh(home, "ls", QH_LOG="loud")
    assert done.returncode == 3
    assert b"QH_LOG" in done.stderr
