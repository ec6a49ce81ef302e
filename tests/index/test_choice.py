"""Which family is chosen: by rows, recall, memory, time and clients, and what every other one hears."""

from typing import Literal

import pytest

from tasks.errors import VitrineError
from tasks.index.choice import FLAT_MAX_ROWS, Budget, Requirements, choose_family, expected_ms, next_family, rank_families
from tasks.index.families import FAMILIES, RETIRED

MILLION = 1_000_000
MIB = 2**20


@pytest.mark.parametrize(
    ("need", "chosen"),
    [
        (Requirements(2_000, 512), "flat"),
        (Requirements(16_000, 512, shards=8), "flat"),
        (Requirements(400_000, 512, shards=8), "ivf_fs_sq8"),
        (Requirements(MILLION, 512), "ivf_fs_sq8"),
        (Requirements(MILLION, 128, target=0.98), "ivf_fs_fp16"),
        (Requirements(MILLION, 512, target=0.7), "ivf_fs_sq8"),
        (Requirements(MILLION, 4), "ivf_fs_sq8"),
        (Requirements(MILLION, 512, target=0.999), "flat"),
    ],
)
def test_without_a_budget_rows_and_recall_decide(need: Requirements, chosen: str) -> None:
    choice = choose_family(need)
    assert choice.family.name == chosen
    assert choice.reasons[chosen].startswith("chosen: ")
    assert set(choice.reasons) == set(FAMILIES)
    assert all(why.endswith("MiB") for why in choice.reasons.values()), "every family says its memory"


@pytest.mark.parametrize(
    ("need", "chosen", "refused"),
    [
        (
            Requirements(MILLION, 512, budget=Budget(ram_bytes=1000 * MIB)),
            "ivf_fs_sq8",
            {"ivf_fs_fp16": "takes 1022 MiB", "hnsw_flat": "takes 2216 MiB", "ivf_pq": "reaches recall@10 0.77 on every"},
        ),
        (
            Requirements(MILLION, 512, target=0.75, budget=Budget(ram_bytes=200 * MIB)),
            "ivf_pq",
            {"ivf_fs_sq8": "takes 534 MiB"},
        ),
        (Requirements(MILLION, 512, target=0.75, budget=Budget(ram_bytes=200 * MIB, build_s=200)), "", {}),
        (
            Requirements(MILLION, 512, budget=Budget(p99_ms=2)),
            "hnsw_sq8",
            {"ivf_fs_sq8": "would have a p99 of about", "flat": "would have a p99 of about 279.3 ms"},
        ),
        (Requirements(MILLION, 512, target=0.99, budget=Budget(p99_ms=5)), "hnsw16_fp16", {}),
        (
            Requirements(MILLION, 512, target=0.99, budget=Budget(p99_ms=3)),
            "hnsw_fp16",
            {"hnsw_bf16": "reaches recall@10 0.98 on every", "ivf_fs_fp16": "would have a p99 of about"},
        ),
        (
            Requirements(MILLION, 512, target=0.98, budget=Budget(p99_ms=3)),
            "hnsw_bf16",
            {"hnsw_sq8": "reaches recall@10 0.97 on every", "ivf_fs_fp16": "would have a p99 of about"},
        ),
        (Requirements(MILLION, 512, target=0.99, budget=Budget(p99_ms=5, build_s=200)), "", {}),
        (
            Requirements(8 * MILLION, 512, shards=8, budget=Budget(p99_ms=30, ram_bytes=8 * 2**30, build_s=600)),
            "ivf_fs_sq8",
            {"ivf_flat": "takes 15747 MiB"},
        ),
        (
            Requirements(MILLION, 512, budget=Budget(build_s=200, p99_ms=15)),
            "ivf_fs_sq8",
            {"hnsw_sq8": "would take about 680 s to build a shard"},
        ),
        (
            Requirements(MILLION, 512, budget=Budget(p99_ms=5, clients=8), cores=2),
            "",
            {},
        ),
        (
            Requirements(MILLION, 512, budget=Budget(p99_ms=8, clients=8), cores=2),
            "hnsw_sq8",
            {"ivf_fs_sq8": "would have a p99 of about 11.2 ms with 8 clients"},
        ),
        (Requirements(MILLION, 512, budget=Budget(p99_ms=8, clients=8), cores=8), "ivf_fs_sq8", {}),
        (Requirements(5 * MILLION, 512, shards=100, budget=Budget(ram_bytes=100 * MIB, p99_ms=1)), "", {}),
        (
            Requirements(40_000, 512, budget=Budget(ram_bytes=50 * MIB)),
            "ivf_fs_sq8",
            {"flat": "takes 78 MiB"},
        ),
        (Requirements(2_000, 512, budget=Budget(ram_bytes=1 * MIB)), "", {}),
    ],
)
def test_a_budget_decides_the_family_and_every_other_hears_why(need: Requirements, chosen: str, refused: dict[str, str]) -> None:
    if not chosen:
        with pytest.raises(VitrineError, match="no index family holds"):
            choose_family(need)
        return
    choice = choose_family(need)
    assert choice.family.name == chosen
    for name, why in refused.items():
        assert choice.reasons[name].startswith(why)
    assert set(choice.reasons) == set(FAMILIES)


def test_a_budget_that_nothing_keeps_is_refused_with_what_each_family_needs() -> None:
    with pytest.raises(VitrineError, match=r"ivf_pq: reaches recall@10 0\.77 on every .*hnsw_sq8: takes"):
        choose_family(Requirements(MILLION, 512, budget=Budget(ram_bytes=10 * MIB)))
    with pytest.raises(VitrineError, match="ivf_fs_sq8: needs 2496 training vectors and there are 2000"):
        choose_family(Requirements(2_000, 512, budget=Budget(ram_bytes=1 * MIB)))
    with pytest.raises(VitrineError, match="'annoy' is not known; choose one of flat, ivf_flat, ivf_pq, "):
        choose_family(Requirements(10, 512), "annoy")


@pytest.mark.parametrize("family", RETIRED)
def test_a_family_that_is_built_no_more_is_refused_and_others_are_named(family: str) -> None:
    with pytest.raises(
        VitrineError, match=f"index family '{family}' is built no more, .*; choose one of flat, ivf_flat, ivf_pq, "
    ):
        choose_family(Requirements(MILLION, 512), family)
    assert family not in FAMILIES


def test_a_name_is_taken_and_what_speaks_against_it_is_said() -> None:
    choice = choose_family(Requirements(MILLION, 512), "ivf_pq")
    assert choice.family.name == "ivf_pq"
    assert choice.reasons["ivf_pq"].startswith("chosen: asked for by name, though it reaches recall@10 0.77 on every kind")
    assert set(choice.reasons) == set(FAMILIES)
    assert choose_family(Requirements(MILLION, 512), "hnsw_sq8").reasons["hnsw_sq8"].startswith("chosen: asked for by name;")


def test_the_rows_of_all_shards_are_compared_exactly_within_what_is_said() -> None:
    flat = FAMILIES["flat"]
    assert expected_ms(flat, Requirements(FLAT_MAX_ROWS, 512)) < 5
    assert expected_ms(flat, Requirements(400_000, 512, shards=8)) > 30


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 0.98, 0.99, 0.999])
def test_nothing_is_preferred_that_is_known_to_find_too_little(target: float) -> None:
    for family in rank_families(Requirements(MILLION, 512, target=target)):
        assert family.reach[-1][0] >= target


@pytest.mark.parametrize(
    ("family", "missed", "budget", "expected"),
    [
        ("ivf_fs_sq8", "recall", Budget(), "ivf_fs_fp16"),
        ("ivf_fs_sq8", "recall", Budget(ram_bytes=600 * MIB), ""),
        ("ivf_fs_sq8", "p99", Budget(p99_ms=3), "hnsw_sq8"),
        ("ivf_fs_sq8", "p99", Budget(p99_ms=3, build_s=300), ""),
        ("ivf_fs_fp16", "memory", Budget(ram_bytes=1000 * MIB), "ivf_fs_sq8"),
    ],
)
def test_what_was_refused_names_the_family_to_take_next(
    family: str, missed: Literal["recall", "p99", "memory"], budget: Budget, expected: str
) -> None:
    assert next_family(FAMILIES[family], Requirements(MILLION, 512, budget=budget), missed) == expected
