"""The page of a version in MLflow: its description in Markdown, with the figures that matter, the gates and links."""

from collections.abc import Iterable, Mapping, Sequence

from serving.contract.manifest import Gate

DESCRIPTION_LENGTH = 5000
"""Longest description that MLflow stores (mlflow/store/model_registry/dbmodels/models.py: String(5000))."""


def version_page(
    summary: str, figures: Mapping[str, str], gates: Sequence[Gate], links: Mapping[str, str], sections: Sequence[str] = ()
) -> str:
    """Markdown: the summary as first paragraph, a table of figures by name, links, `sections` as they are, and the gate table.

    The gates come last, since a page that is too long is cut at its end.
    """
    parts = [" ".join(summary.split())]
    if figures:
        parts.append(_table(("figure", "value"), figures.items()))
    if links:
        parts.append(" · ".join(f"[{name}]({url})" for name, url in links.items()))
    parts += sections
    if gates:
        failed = sum(not g.passed for g in gates)
        title = f"**Gates:** {failed} of {len(gates)} failed" if failed else f"**Gates:** all {len(gates)} passed"
        rows = [
            (g.name.replace("_", " "), f"{g.value:.4g}", f"{g.threshold:.4g}", "passed" if g.passed else "**failed**")
            for g in sorted(gates, key=lambda g: g.passed)
        ]
        parts += [title, _table(("gate", "measured", "threshold", "verdict"), rows)]
    return "\n\n".join(parts)


def shortened(page: str, length: int) -> str:
    """The page in at most `length` characters, cut at the end of a line."""
    if len(page) <= length:
        return page
    more = "\n\n…"
    return page[: length - len(more)].rpartition("\n")[0].rstrip() + more


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)
