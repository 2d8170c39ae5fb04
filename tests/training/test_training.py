"""Legs that join without a seam, a schedule that ends at zero, and an export that others read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qh_runtime.errors import QhError  # noqa: E402
from qh_runtime.training.config import ModelConfig  # noqa: E402
from qh_runtime.training.decoder import BitNetDecoder  # noqa: E402
from qh_runtime.training.echo import echo_rows  # noqa: E402
from qh_runtime.training.export import as_exported, checkpoint_tensors, export, pack_codes  # noqa: E402
from qh_runtime.training.leg import commands  # noqa: E402
from qh_runtime.training.rows import Rows  # noqa: E402
from qh_runtime.training.sample import converse  # noqa: E402
from qh_runtime.training.team import Team  # noqa: E402
from qh_runtime.training.trainer import (  # noqa: E402
    Progress,
    Recipe,
    Trainer,
    learning_rate_factor,
    run_leg,
)
from qh_runtime.training.vocabulary import train_vocabulary  # noqa: E402

MICRO = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=64,
)
RECIPE = Recipe(batch_windows=2, warmup_steps=2)


def some_rows() -> Rows:
    generator = np.random.default_rng(7)
    tokens = generator.integers(5, 320, (12, 17)).astype(np.uint16)
    weights = np.ones_like(tokens, dtype=np.uint8)
    weights[:6, 0] = 0
    return Rows(tokens, weights, generator.permutation(12))


def trainer() -> Trainer:
    return Trainer(MICRO, RECIPE, torch.bfloat16, compiled=False)


def test_two_legs_equal_one_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = trainer(), trainer(), trainer()
    run_leg(whole, some_rows(), tmp_path / "whole.pt", steps=6)
    run_leg(first, some_rows(), tmp_path / "leg.pt", steps=3)
    second.load(tmp_path / "leg.pt")
    run_leg(second, some_rows(), tmp_path / "leg.pt", steps=3)
    assert second.progress.step == whole.progress.step == 6
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    rows = some_rows()
    few = Rows(rows.tokens[:2], rows.weights[:2], np.arange(2))
    run = trainer()
    start = float(run.step(*few.batch(0, 2)))
    run_leg(run, few, tmp_path / "state.pt", steps=40)
    assert float(run.step(*few.batch(0, 2))) < start - 0.5


def test_the_decay_ends_at_zero_and_stops_the_leg(tmp_path: Path) -> None:
    run = trainer()
    run_leg(run, some_rows(), tmp_path / "state.pt", steps=2)
    run.begin_late_texts()
    run.begin_decay(3)
    run_leg(run, some_rows(), tmp_path / "state.pt")
    assert run.progress.finished
    assert (run.progress.step, run.progress.late_start) == (5, 2)
    assert learning_rate_factor(run.progress, 2) == 0.0
    factors = [
        learning_rate_factor(Progress(s, decay_start=10 if s >= 10 else -1, decay_steps=8), 2)
        for s in range(18)
    ]
    assert factors[0] == 0.5
    assert factors[2] == factors[10] == 1.0
    assert sorted(factors[10:], reverse=True) == factors[10:]


def team_leg(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    team = Team(rank, size, folder / "meeting")
    run = Trainer(MICRO, RECIPE, torch.float32, compiled=False, team=team)
    run_leg(run, some_rows(), folder / f"team{size}.pt", steps=4)
    team.leave()


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(team_leg, (2, tmp_path), nprocs=2)
    team_leg(0, 1, tmp_path)
    alone, together = trainer(), trainer()
    alone.load(tmp_path / "team1.pt")
    together.load(tmp_path / "team2.pt")
    for name, value in alone.model.state_dict().items():
        # Gradients are added in another order; a code on its rounding boundary may then differ.
        difference = (value - together.model.state_dict()[name]).abs()
        assert float(difference.mean()) < 1e-4, name


def test_the_card_names_the_commands_of_every_phase() -> None:
    changes = [(0, 1.0, 0), (30, 2.0, 0), (60, 2.0, 1)]
    progress = Progress(90, late_start=50, decay_start=70, decay_steps=20, changes=changes)
    lines = [line.partition("--learning-rate ")[2] for line in commands(progress)]
    assert lines == [
        "1.0 --echo-rows 0 --steps 30",
        "2.0 --echo-rows 0 --resume --steps 20",
        "2.0 --echo-rows 0 --resume --late-texts --steps 10",
        "2.0 --echo-rows 1 --resume --steps 10",
        "2.0 --echo-rows 1 --resume --decay-steps 20 --export assets/models/qh-toy",
    ]
    progress.step = 85
    assert commands(progress)[-1].endswith(
        "--decay-steps 20 --steps 15 --export assets/models/qh-toy"
    )


def test_echoes_can_be_known_by_looking_back() -> None:
    tokens, weights = echo_rows(3, 4, 320, 200)
    again, _ = echo_rows(3, 4, 320, 200)
    assert torch.equal(tokens, again)
    assert 0.3 < float(weights.float().mean()) < 0.5
    for row, learned in zip(tokens.tolist(), weights.tolist(), strict=True):
        for at in (i for i, weight in enumerate(learned) if weight):
            pair = row[at - 1 : at + 1]
            assert any(row[i : i + 2] == pair for i in range(at - 1))


def test_packing_puts_four_distant_rows_into_a_byte() -> None:
    codes = torch.tensor([[-1.0], [1.0], [0.0], [1.0], [0.0], [-1.0], [1.0], [-1.0]])
    assert pack_codes(codes).tolist() == [[0x94], [0x0A]]


def test_transformers_computes_the_same_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = BitNetDecoder(MICRO, torch.bfloat16)
    model.initialize(5)
    tokenizer = train_vocabulary(["Hello there, what a day."] * 3, MICRO.vocab_size)
    export(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    # The checkpoint is bfloat16; float32 arithmetic on its values makes the comparison exact.
    theirs = torch.nn.Module.float(theirs)
    tokens = torch.randint(5, 320, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (as_exported(model)(tokens) - theirs(tokens).logits).abs().max()
    assert float(difference) == 0.0
    template = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "Hello"}]
    text = template.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<s><|user|>Hello</s><|assistant|>"


def test_the_folder_is_offline_packed_and_bf16(tmp_path: Path) -> None:
    model = BitNetDecoder(MICRO, torch.bfloat16)
    model.initialize(5)
    tensors = checkpoint_tensors(model)
    packed = tensors["model.layers.0.mlp.up_proj.weight"]
    assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, (16, 64))
    assert tuple(tensors["model.layers.0.mlp.up_proj.weight_scale"].shape) == (1,)
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    export(model, train_vocabulary(["a day"], MICRO.vocab_size), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["quantization_mode"] == "offline"
    assert config["tie_word_embeddings"] is True


def test_a_state_of_other_sizes_is_refused(tmp_path: Path) -> None:
    run = trainer()
    run.save(tmp_path / "state.pt")
    other = Trainer(
        dataclasses.replace(MICRO, intermediate_size=128), RECIPE, torch.float32, compiled=False
    )
    with pytest.raises(QhError) as refused:
        other.load(tmp_path / "state.pt")
    assert refused.value.facts == {"path": str(tmp_path / "state.pt")}


def test_greedy_conversations_alternate() -> None:
    model = BitNetDecoder(MICRO)
    model.initialize(5)
    tokenizer = train_vocabulary(["Hello there"], MICRO.vocab_size)
    chat = converse(model, tokenizer, ["Hello", "there"])
    assert [m.role for m in chat] == ["user", "assistant"] * 2


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        ModelConfig(num_attention_heads=3)
    with pytest.raises(ValueError, match="num_key_value_heads"):
        ModelConfig(num_key_value_heads=3)
    default = ModelConfig()
    model = BitNetDecoder(default)
    assert sum(p.numel() for p in model.parameters()) == default.parameters
