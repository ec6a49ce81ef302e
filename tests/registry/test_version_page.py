"""The page of a version: what a person reads first is first, and a page that is too long loses its end."""

from serving.contract.manifest import Gate
from tasks.registry.version_page import shortened, version_page

GATES = [
    Gate(name="p99_ms", value=21.0, threshold=200.0, passed=True, reason="fast"),
    Gate(name="exact_recall", value=0.91, threshold=0.95, passed=False, reason="low"),
]


def test_the_page_has_summary_figures_links_and_gates_the_failed_first() -> None:
    page = version_page(
        "fails:\nlow", {"Recall@10 of photos": "0.910"}, GATES, {"Report": "http://mlflow/report"}, ["**Limits**"]
    )
    assert page.split("\n\n") == [
        "fails: low",
        "| figure | value |\n|---|---|\n| Recall@10 of photos | 0.910 |",
        "[Report](http://mlflow/report)",
        "**Limits**",
        "**Gates:** 1 of 2 failed",
        "| gate | measured | threshold | verdict |\n|---|---|---|---|\n| exact recall | 0.91 | 0.95 | **failed** |\n"
        "| p99 ms | 21 | 200 | passed |",
    ]


def test_what_is_not_there_leaves_nothing_behind() -> None:
    assert version_page("made by hand", {}, [], {}) == "made by hand"
    assert "**Gates:** all 1 passed" in version_page("made", {}, GATES[:1], {})


def test_a_page_is_cut_at_the_end_of_a_line() -> None:
    assert shortened("short", 5) == "short"
    cut = shortened("first\nsecond\nthird\nfourth", 20)
    assert cut == "first\nsecond\n\n…"
    assert len(cut) <= 20
