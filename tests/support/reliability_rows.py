"""The reliability table: every attack on files, downloads and the store, its goal and its tests.

A test is named as pytest does, from tests/ on, with a text that its parameters contain after "[".
`tests/reliability.py` runs them and prints the table; a test of its own holds that they exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ATTACKS", "GOALS", "Attack"]

# The row's goal in words, and what other programs do where that was measured or read.
GOALS: Mapping[str, tuple[str, str]] = {
    "F2": (
        "0 deaths, 0 silent accepts, every refusal clear and within 1 s",
        "safetensors 0.8.0: 4 of 12 hostile kinds accepted",
    ),
    "F3": ("0 uncaught, every refusal clear", "tokenizers 0.23.3: 4 of 5 panics"),
    "F6": ("0 bytes read or written outside the store", "CVE-2024-37032 (Ollama)"),
    "F7": (
        "100 % refused or pulled without the code; torch, transformers, pickle never reached",
        "CVE-2026-4372, CVE-2026-5241 (transformers)",
    ),
    "D1": (
        "0 bad files, at most 8 MiB fetched again per kill, 0 orphan bytes",
        "huggingface_hub 2.4.0: from 0 each time, one orphan per kill",
    ),
    "D2": (
        "right bytes or a clear error; at most 1.1 times the size sent; a stall noticed in 30 s",
        "huggingface_hub 2.4.0: fails at drops each 5 MB, accepts a wrong hash",
    ),
    "D3": (
        "100 % found by verify; a load looks at sizes, times and samples; only what is bad fetched",
        "Ollama #17520: pull reports success",
    ),
    "D6": (
        "clear error with bytes needed and free, 0 corrupt, the store usable after",
        "huggingface_hub 2.4.0: a warning, then OSError",
    ),
    "D9": (
        "0 corruption, at most 1.05 times the bytes of one download, a lock free within 1 s",
        "huggingface_hub: lock or duplicate work",
    ),
}


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        limits: figure to the largest value that meets the goal.
    """

    row: str
    name: str
    tests: tuple[str, ...]
    limits: Mapping[str, float] = field(default_factory=dict)


_S = "unit/store/test_"
_KILLS = f"{_S}download_kills.py::test_"
_FAULTS = f"{_S}download_faults.py::test_"
_CLEAN: Mapping[str, float] = {"bad_files": 0, "orphan_bytes": 0}
_KILLED = {**_CLEAN, "refetched_bytes": 8 << 20}
_FAST = {"reject_s": 1.0}
_ONCE = {**_CLEAN, "sent_ratio": 1.05}
_DROPPED = {**_CLEAN, "sent_ratio": 1.1}


def _fault(*names: str) -> tuple[str, ...]:
    """A fault in every size: one in the quick tier, three more in the full one."""
    return tuple(
        f"{_FAULTS}right_bytes_or_a_clear_error{tier}[{name}"
        for tier in ("", "_for_every_size")
        for name in names
    )


ATTACKS = (
    Attack(
        "F2",
        "hostile headers and their limits",
        (
            "unit/checkpoints/test_safetensors.py::test_hostile_files_are_refused_with_the_broken_rule",
            "unit/checkpoints/test_safetensors.py::test_refusing_takes_little_memory",
            f"{_S}remote_header.py::test_hostile_headers_are_refused_by_the_rule_for_files",
        ),
    ),
    Attack(
        "F2",
        "mutated files, here and on the hub",
        (
            "property/test_safetensors_mutations.py::test_structured_mutations",
            "property/test_safetensors_mutations.py::test_many_structured_mutations",
            "property/test_safetensors_mutations.py::test_byte_mutations",
            "property/test_safetensors_mutations.py::test_arbitrary_bytes",
            f"{_S}remote_header.py::test_mutated_headers_have_the_outcome_of_the_same_file_here",
        ),
        _FAST,
    ),
    Attack(
        "F2",
        "index: shard names, missing shards, duplicates",
        (
            "unit/checkpoints/test_folder.py::test_hostile_indexes_are_refused",
            "unit/checkpoints/test_folder.py::test_hostile_index_texts_are_refused",
            "unit/checkpoints/test_folder.py::test_a_shard_that_is_cut_is_refused",
            f"{_S}remote_header.py::test_hostile_indexes_are_refused",
            f"{_S}remote_header.py::test_mutated_indexes_are_refused_or_right",
        ),
    ),
    Attack(
        "F2",
        "type and shape against the config, in whole folders",
        (
            "property/test_folder_mutations.py::test_mutated_folders",
            "property/test_folder_mutations.py::test_many_mutated_folders",
        ),
        _FAST,
    ),
    Attack(
        "F3",
        "config, generation_config, tokenizer_config: hostile JSON",
        (
            "unit/checkpoints/test_config.py::test_hostile_files_are_refused",
            "unit/checkpoints/test_config.py::test_larger_files_are_refused_unread",
            "architectures/test_config_fuzz.py::test_mangled_configs",
            "architectures/test_config_fuzz.py::test_many_mangled_configs",
            "architectures/test_config_fuzz.py::test_any_json_value",
            "architectures/test_config_fuzz.py::test_deep_nesting_and_huge_values",
        ),
    ),
    Attack(
        "F3",
        "tokenizer.json: ids out of range, panics, mutations",
        (
            "unit/text/test_tokenizer_file.py::test_broken_file_is_named",
            "unit/text/test_tokenizer_file.py::test_library_failure_is_converted",
            "unit/text/test_tokenizer_file.py::test_panic_is_not_an_exception_but_is_converted",
            "unit/text/test_tokenizer_file.py::test_broken_companion_file",
            "unit/text/test_tokenizer_file.py::test_bad_end_token",
            "unit/text/test_tokenizer_file.py::test_mutated_file_loads_or_is_refused",
            "unit/text/test_tokenizer_file.py::test_many_mutated_files_load_or_are_refused",
        ),
    ),
    Attack(
        "F6",
        "pulls with hostile names, hashes, sizes, commits, indexes, under an audit hook",
        (
            f"{_S}outside_the_store.py::test_nothing_outside_is_read_or_written",
            f"{_S}pull_refusals.py::test_hostile_names_leave_nothing_anywhere",
        ),
        {"outside_bytes": 0},
    ),
    Attack(
        "F6",
        "file names",
        (f"{_S}hub.py::test_a_file_with_a_hostile_name_is_no_file",),
    ),
    Attack(
        "F6",
        "digests, sizes, commits, repositories and revisions",
        (
            f"{_S}hub.py::test_a_file_with_a_hostile_digest_is_refused_when_needed",
            f"{_S}hub.py::test_a_file_with_a_hostile_size_is_refused_when_needed",
            f"{_S}hub.py::test_a_hostile_commit_is_refused",
            f"{_S}hub.py::test_what_is_no_repository_is_not_asked_for",
            f"{_S}hub.py::test_what_is_no_revision_is_not_asked_for",
        ),
    ),
    Attack(
        "F6",
        "symlinks: in folders, caches and the store itself",
        (
            f"{_S}import.py::test_links_out_of_the_folder",
            f"{_S}import.py::test_a_cache_may_link_into_its_own_blobs_alone",
            "unit/checkpoints/test_folder.py::test_links_that_leave_the_folder_are_refused",
            "unit/text/test_tokenizer_folder.py::test_a_link_out_of_the_folder_is_refused",
            f"{_S}part.py::test_a_link_is_not_followed",
            f"{_S}disk.py::test_strange_files_are_left_alone",
        ),
    ),
    Attack(
        "F7",
        "pickle, auto_map, custom code: pulled and loaded under an audit hook",
        (
            f"{_S}code_in_repositories.py::test_every_one_is_refused_and_nothing_of_it_runs",
            "unit/checkpoints/test_code_in_checkpoints.py::test_code_is_never_reached",
            "unit/checkpoints/test_code_in_checkpoints.py::test_the_hook_sees_code_that_does_run",
            f"{_S}artifacts.py::test_repositories_of_code_pickles_and_the_like_are_refused_by_their_names",
        ),
    ),
    Attack(
        "D1",
        "kill -9 at random points of a download",
        (f"{_KILLS}kills_at_any_point", f"{_KILLS}many_kills_at_any_point"),
        _KILLED,
    ),
    Attack(
        "D1",
        "one kill of a 1 GiB download",
        (f"{_KILLS}one_kill_costs_a_hundredth_of_a_large_file",),
        {"refetched_bytes": (1 << 30) // 100},
    ),
    Attack(
        "D1",
        "`qh-chat pull` killed twice on a terminal, then verified and chatted with",
        ("unit/commands/test_pull_on_a_terminal.py::test_killed_twice_and_chatted_with",),
        _KILLED,
    ),
    Attack("D2", "drop each 1, 5, 12 MB", _fault("drop each 1 MB", "drop each 5", "drop each 12"),
           _DROPPED),
    Attack("D2", "reset each 3 MB, drop each 100 bytes, at byte 0",
           _fault("reset", "drop each 100", "drop before", "never a byte"), _CLEAN),
    Attack("D2", "stall", (*_fault("stall"), f"{_FAULTS}a_stall_is_noticed_in_time_as_shipped"),
           {**_CLEAN, "stall_noticed_s": 30}),
    Attack("D2", "slow drip", _fault("slow drip"), _CLEAN),
    Attack("D2", "short body", _fault("short"), _CLEAN),
    Attack("D2", "long body", _fault("long"), _CLEAN),
    Attack("D2", "200 to a Range", _fault("200 "), _CLEAN),
    Attack("D2", "wrong 206 range", _fault("wrong range", "206 in chunks"), _CLEAN),
    Attack("D2", "416", _fault("416"), _CLEAN),
    Attack("D2", "408", _fault("408"), _CLEAN),
    Attack(
        "D2",
        "429 with Retry-After",
        (f"{_FAULTS}a_server_that_asks_to_wait_is_left_alone",
         f"{_FAULTS}a_server_that_allows_one_connection_gets_one"),
    ),
    Attack("D2", "5xx", _fault("500", "502", "503"), _CLEAN),
    Attack("D2", "redirect loop", _fault("redirect"), _CLEAN),
    Attack(
        "D2",
        "cross-host redirect: the token stays home",
        (
            f"{_FAULTS}signed_addresses_that_expire_and_a_token_that_stays_home",
            f"{_S}http.py::TestRedirects::test_the_token_stays_with_the_first_host",
            f"{_S}http.py::TestRedirects::test_another_port_is_another_host",
            f"{_S}http.py::TestRedirects::test_the_token_is_gone_for_ever_after_crossing",
        ),
    ),
    Attack(
        "D2",
        "etag change midway",
        (
            *_fault("etag", "every answer"),
            f"{_S}download_faults.py::TestOtherBytes::test_another_version_midway_is_fetched_anew_once",
            f"{_FAULTS}versions_without_end_do_not_restart_without_end",
        ),
        _CLEAN,
    ),
    Attack("D2", "gzip despite identity", _fault("gzip"), _CLEAN),
    Attack(
        "D2",
        "wrong hash",
        (
            f"{_S}download_faults.py::TestOtherBytes::test_a_wrong_hash_is_fetched_once_and_thrown_away",
            f"{_S}pull_refusals.py::test_weights_that_are_not_what_their_hash_says",
        ),
    ),
    Attack(
        "D2",
        "a page instead of the file",
        (
            *_fault("page"),
            f"{_S}download_faults.py::TestOtherBytes::test_a_page_of_the_right_size_is_noticed_by_its_hash",
        ),
        _CLEAN,
    ),
    Attack(
        "D3",
        "flip, zero, truncate, remove: found, and repaired with the bad MiB alone",
        (
            f"{_S}repair_model.py::test_found_and_repaired_with_the_bad_bytes_alone",
            f"{_S}repair_model.py::test_two_hundred_drawn_at_random",
            f"{_S}integrity.py::test_verify_finds_every_change",
        ),
    ),
    Attack(
        "D3",
        "what a load looks at",
        (
            f"{_S}integrity.py::test_a_load_looks_at_a_few_mib",
            f"{_S}integrity.py::test_a_load_draws_other_mib_each_time",
            f"{_S}integrity.py::test_a_load_sees_every_size_and_small_file",
            f"{_S}integrity.py::test_a_file_that_was_written_to_is_looked_at_in_full_once",
        ),
    ),
    Attack(
        "D6",
        "disk full (8 MiB tmpfs), read-only, file-size limit",
        (
            f"{_S}download_disk.py::test_a_file_that_cannot_fit_is_refused_before_it_is_asked_for",
            f"{_S}download_disk.py::test_a_disk_that_fills_up_midway_keeps_what_came",
            f"{_S}download_disk.py::test_a_disk_that_is_read_only",
            f"{_S}download_disk.py::test_a_file_size_limit_is_noticed_before_anything_is_asked_for",
            f"{_S}download_disk.py::test_a_file_where_a_folder_should_be",
            f"{_S}pull_refusals.py::test_a_disk_that_refuses",
        ),
    ),
    Attack(
        "D6",
        "every write, fsync, rename of a download fails once",
        (
            f"{_S}download_disk.py::test_every_call_to_the_disk_may_fail",
            f"{_S}part.py::test_the_store_survives_every_failing_call",
        ),
    ),
    Attack(
        "D6",
        "every change of rm, prune, import, removing a source: refused, or killed before it",
        (
            f"{_S}disk.py::test_disturbed_at_any_point_the_rest_works_and_the_next_run_cleans",
            f"{_S}import.py::test_disturbed_at_any_point_it_goes_on",
            f"{_S}dropping.py::test_disturbed_at_any_point_it_loads_before_and_after",
        ),
    ),
    Attack(
        "D6",
        "chat goes on without history",
        (
            "unit/app/test_history.py::test_a_folder_that_cannot_be_made_keeps_chats_in_memory",
            "unit/app/test_history.py::test_a_full_disk_is_said_and_left_as_soon_as_it_is_not",
            "unit/app/test_history.py::test_failing_at_every_write_leaves_an_intact_file",
        ),
    ),
    Attack(
        "D9",
        "two processes, one download",
        (
            f"{_KILLS}two_processes_fetch_a_file_once",
            f"{_KILLS}many_pairs_of_processes",
            "unit/commands/test_two_processes.py::test_two_pulls_of_one_model_fetch_it_once",
        ),
        {**_ONCE, "refetched_bytes": 8 << 20},
    ),
    Attack(
        "D9",
        "a lock after kill -9",
        (
            f"{_KILLS}the_other_goes_on_within_a_second_of_a_kill",
            "unit/commands/test_two_processes.py::test_a_lock_of_a_killed_process_is_free_at_once",
            f"{_S}snapshot.py::test_the_lock_has_one_holder_and_dies_with_it",
            f"{_S}disk_cache.py::test_a_lock_that_is_pruned_all_the_time_is_still_one_lock",
        ),
        {"lock_free_s": 1.0},
    ),
    Attack(
        "D9",
        "prune and rm during pulls, loads and answers",
        (
            "unit/commands/test_two_processes.py::test_pruning_disturbs_no_pull",
            "unit/commands/test_two_processes.py::test_loads_and_prunes_at_once",
            "unit/commands/test_two_processes.py::test_a_model_that_is_removed_while_it_answers_answers_to_the_end",
            f"{_S}disk_cache.py::test_what_a_killed_look_left_goes_at_once",
        ),
    ),
    Attack(
        "D9",
        "two processes, one history",
        ("unit/app/test_history.py::test_another_process_that_still_answers_is_left_alone",),
    ),
)  # fmt: skip
