"""Plans: itemised sums, the choice of a context, refusals and what they offer instead."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qh_runtime.errors import DoesNotFitError, FormatError, PlanError
from qh_runtime.formats import base as formats
from qh_runtime.hardware.facts import Fact
from qh_runtime.options import LoadOptions
from qh_runtime.planner.plan import (
    Plan,
    WeightFormats,
    context_ladder,
    make_plan,
    packed_formats,
)
from qh_runtime.units import gigabytes
from tests.support.imagined_machine import machine
from tests.support.specs import BITNET_2B, LLAMA_1B, PROSE_7M, TINY_QWEN3, spec_of

GIB = 1 << 30
TERNARY = WeightFormats("ternary", "f16", "f16")
BF16 = WeightFormats("bf16", "bf16", "bf16")


def plan_of(
    config: dict[str, Any] = BITNET_2B,
    weights: WeightFormats = TERNARY,
    usable_bytes: int | None = 16 * GIB,
    **options: Any,
) -> Plan:
    return make_plan(spec_of(config), weights, machine(usable_bytes), LoadOptions(**options))


def test_bitnet_2b_by_hand() -> None:
    plan = plan_of()
    items = {item.name: item for item in plan.items}
    assert items["embedding"].bytes == 128256 * 2560 * 2
    assert "head" not in items
    per_layer = [(2560, 2560), (640, 2560), (640, 2560), (2560, 2560)]
    per_layer += [(6912, 2560), (6912, 2560), (2560, 6912)]
    # 2 bits a weight and one float32 scale a row; all sizes are multiples of the tile.
    assert items["linears"].bytes == 30 * sum(n * k // 4 + 4 * n for n, k in per_layer)
    assert items["kv cache"].bytes == 2 * 30 * 4096 * 5 * 128 * 2
    assert plan.context_length == 4096
    assert plan.total_bytes == sum(item.bytes for item in plan.items)
    assert (
        plan.group_bytes("weights")
        + plan.group_bytes("kv_cache")
        + plan.group_bytes("scratch")
        + plan.group_bytes("runtime")
        == plan.total_bytes
    )
    assert plan.fits
    plan.require_fit()


def test_untied_head_has_its_own_line_and_format() -> None:
    plan = plan_of(PROSE_7M, WeightFormats("int4_g32", "bf16", "int8"))
    items = {item.name: item for item in plan.items}
    assert items["head"].bytes == formats.get("int8").nbytes((4096, 256))
    assert items["embedding"].bytes == 4096 * 256 * 2


def test_overrides_are_counted_by_name() -> None:
    spec = spec_of(PROSE_7M)
    name = spec.layers[0].down.name
    plain = plan_of(PROSE_7M, BF16)
    mixed = plan_of(PROSE_7M, dataclasses.replace(BF16, overrides={name: "f32"}))
    assert mixed.total_bytes - plain.total_bytes == 256 * 688 * 2


def test_placement_says_what_lies_in_files() -> None:
    mapped, allocated = (
        plan_of(),
        plan_of(weights=dataclasses.replace(TERNARY, placement="allocated")),
    )
    assert mapped.total_bytes == allocated.total_bytes
    assert all(item.file_bytes == 0 for item in allocated.items)
    assert {x.name for x in mapped.items if x.file_bytes} == {"embedding", "linears"}


def test_exact_doubles_the_cache() -> None:
    exact, plain = plan_of(exact=True), plan_of()
    assert exact.kv_type == "f32"
    assert exact.group_bytes("kv_cache") == 2 * plain.group_bytes("kv_cache")


def test_int8_halves_the_cache_and_says_what_it_saves() -> None:
    plain, int8 = plan_of(context_length=4096), plan_of(context_length=4096, kv_type="int8")
    assert int8.kv_type == "int8"
    # 4 bytes of scale beside the 128 codes of a head.
    assert int8.group_bytes("kv_cache") == plain.group_bytes("kv_cache") * (128 + 4) // (2 * 128)
    saved = plain.group_bytes("kv_cache") - int8.group_bytes("kv_cache")
    assert plain.total_bytes - int8.total_bytes == saved
    for plan, other in ((plain, int8), (int8, plain)):
        line = next(x for x in plan.explain() if "kv cache" in x)
        assert f"{plan.kv_type}, 4096 tokens" in line
        assert f"{other.kv_type} takes {gigabytes(other.group_bytes('kv_cache'))}" in line


def test_exact_goes_before_int8() -> None:
    assert plan_of(exact=True, kv_type="int8").kv_type == "f32"


def test_int8_is_offered_where_it_makes_the_asked_context_fit() -> None:
    fitting = plan_of(LLAMA_1B, TERNARY, 16 * GIB, context_length=65536, kv_type="int8")
    between = fitting.total_bytes + GIB // 8
    refused = plan_of(LLAMA_1B, TERNARY, between, context_length=65536)
    assert not refused.fits
    assert refused.alternatives[0] == "--kv int8"
    assert plan_of(LLAMA_1B, TERNARY, between, context_length=65536, kv_type="int8").fits
    smaller = plan_of(LLAMA_1B, TERNARY, GIB, context_length=65536)
    assert "--kv int8" not in smaller.alternatives
    # What has it already, or is to be exact, is not offered it.
    for options in ({"kv_type": "int8"}, {"exact": True}):
        found = plan_of(LLAMA_1B, TERNARY, between // 2, context_length=65536, **options)
        assert not found.fits
        assert "--kv int8" not in found.alternatives


def test_what_the_process_holds_is_counted_on_both_sides() -> None:
    before = plan_of()
    profile = machine(16 * GIB)
    memory = dataclasses.replace(
        profile.memory,
        process_bytes=Fact(500 << 20, "x"),
        process_anonymous_bytes=Fact(400 << 20, "x"),
    )
    profile = dataclasses.replace(profile, memory=memory)
    after = make_plan(spec_of(BITNET_2B), TERNARY, profile, LoadOptions())
    assert after.available_bytes == 16 * GIB + (400 << 20)
    # Where the size of the process is not known, 38 MiB stand in for it.
    assert after.total_bytes - before.total_bytes == (500 - 38) << 20


def test_asked_context_is_kept_even_where_it_does_not_fit() -> None:
    plan = plan_of(LLAMA_1B, BF16, 4 * GIB, context_length=131072)
    assert (plan.context_length, plan.context_source, plan.fits) == (131072, "asked", False)


@pytest.mark.parametrize("context_length", [0, -5, 4097])
def test_context_out_of_range(context_length: int) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(context_length=context_length)
    assert caught.value.facts == {
        "field": "context_length",
        "expected": (1, 4096),
        "found": context_length,
    }


@pytest.mark.parametrize("threads", [0, 5])
def test_threads_out_of_range(threads: int) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(threads=threads)
    assert caught.value.facts["field"] == "threads"


def test_more_threads_than_cores_are_allowed_up_to_the_processors() -> None:
    plan = plan_of(threads=4)
    assert (plan.threads, plan.threads_source) == (4, "asked")


def test_unknown_format() -> None:
    with pytest.raises(FormatError):
        plan_of(weights=WeightFormats("int3", "f16", "f16"))


def test_refusal_has_the_sums_and_what_would_fit() -> None:
    plan = plan_of(LLAMA_1B, BF16, 3 * GIB, context_length=131072)
    with pytest.raises(DoesNotFitError) as caught:
        plan.require_fit()
    facts = caught.value.facts
    assert facts["required_bytes"] == plan.total_bytes
    assert facts["available_bytes"] == 3 * GIB
    assert facts["plan"]["fits"] is False
    option, _, value = facts["alternatives"][0].partition(" ")
    assert option == "--context"
    assert plan_of(LLAMA_1B, BF16, 3 * GIB, context_length=int(value)).fits
    assert "--force" in str(caught.value)


def test_packing_is_offered_only_where_it_helps() -> None:
    # bf16 needs 2.5 GB for the weights; int8 layers bring that to 1.5 GB.
    dense = plan_of(LLAMA_1B, BF16, 2 * GIB)
    assert not dense.fits
    assert dense.alternatives == ("--pack int8",)
    tight = plan_of(LLAMA_1B, BF16, 1_300_000_000)
    assert tight.alternatives == ("--pack int4_g32",)
    assert plan_of(LLAMA_1B, BF16, GIB // 2).alternatives == ()
    assert plan_of(BITNET_2B, TERNARY, GIB).alternatives == ()


def test_unknown_memory_never_fits_and_still_has_a_context() -> None:
    plan = plan_of(LLAMA_1B, BF16, None)
    assert (plan.fits, plan.context_length) == (False, 4096)
    with pytest.raises(DoesNotFitError) as caught:
        plan.require_fit()
    assert caught.value.facts["available_bytes"] is None
    assert "unknown" in "\n".join(plan.explain())


def test_tight_memory_keeps_a_short_context_rather_than_none() -> None:
    base = plan_of(context_length=1)
    plan = plan_of(usable_bytes=base.total_bytes + 45_000_000)
    assert plan.fits
    assert 64 <= plan.context_length <= 512
    assert "tight" in plan.context_source


def test_a_chosen_context_leaves_the_stated_share() -> None:
    plan = plan_of(LLAMA_1B, BF16, 8 * GIB)
    assert plan.total_bytes <= 0.75 * 8 * GIB
    assert plan.group_bytes("kv_cache") <= GIB
    assert plan.context_length >= 16384


@pytest.mark.parametrize("most", [1, 63, 64, 100, 512, 1024, 5000, 131072, 1 << 24])
def test_context_ladder(most: int) -> None:
    ladder = context_ladder(spec_of(TINY_QWEN3, max_position_embeddings=most))
    assert ladder[-1] == most
    assert list(ladder) == sorted(set(ladder))
    assert all(b <= 2 * a for a, b in itertools.pairwise(ladder))


def test_to_dict_is_json_and_explain_names_every_item() -> None:
    plan = plan_of()
    plain = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert plain["total_bytes"] == sum(item["bytes"] for item in plain["items"])
    text = "\n".join(plan.explain())
    assert all(item.name in text for item in plan.items)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345_678, "12.3 MB"), (10**11, "100 GB")],
)
def test_gigabytes_are_powers_of_ten(count: int, text: str) -> None:
    assert gigabytes(count) == text


CONFIGS = st.sampled_from([BITNET_2B, LLAMA_1B, PROSE_7M, TINY_QWEN3])
MEMORY = st.integers(0, 64 * GIB)


@settings(deadline=None, max_examples=60)
@given(
    CONFIGS,
    st.sampled_from(sorted(formats.names())),
    MEMORY,
    MEMORY,
    st.booleans(),
    st.none() | st.integers(1, 129),
)
def test_more_memory_never_yields_a_worse_plan(
    config: dict[str, Any],
    name: str,
    one: int,
    other: int,
    exact: bool,
    context_length: int | None,
) -> None:
    weights = WeightFormats(name, name, name)
    less, more = (
        plan_of(config, weights, x, exact=exact, context_length=context_length)
        for x in sorted((one, other))
    )
    assert (more.fits, more.context_length) >= (less.fits, less.context_length) or (
        more.fits and not less.fits
    )
    for plan in (less, more):
        assert plan.total_bytes == sum(item.bytes for item in plan.items)
        assert plan.fits == (plan.total_bytes <= (plan.available_bytes or 0))
        assert plan.fits or all("--" in x for x in plan.alternatives)


@settings(deadline=None, max_examples=30)
@given(CONFIGS, MEMORY)
def test_every_alternative_fits_when_taken(config: dict[str, Any], usable_bytes: int) -> None:
    spec = spec_of(config)
    plan = plan_of(config, BF16, usable_bytes, context_length=spec.max_position_embeddings)
    for alternative in plan.alternatives:
        option, _, value = alternative.partition(" ")
        if option == "--context":
            assert plan_of(config, BF16, usable_bytes, context_length=int(value)).fits
        elif option == "--kv":
            asked = spec.max_position_embeddings
            assert plan_of(config, BF16, usable_bytes, context_length=asked, kv_type="int8").fits
        else:
            assert option == "--pack"
            packed = packed_formats(BF16, value)
            asked = spec.max_position_embeddings
            assert plan_of(config, packed, usable_bytes, context_length=asked).fits
