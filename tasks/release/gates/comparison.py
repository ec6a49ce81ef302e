"""What a candidate is compared with: the catalogue, product by product, and the live version."""

from dataclasses import dataclass

MISMATCHES = {
    "missing": "missing from the index", "strange": "in the index but not in the catalogue",
    "doubled": "found twice, or found although in quarantine",
}  # fmt: skip
"""The kinds of a Reconciliation in words."""


@dataclass(frozen=True)
class Reconciliation:
    """Result of the product-by-product reconciliation: the ids that are out of place."""

    missing: tuple[str, ...] = ()
    """In the catalogue, and neither servable nor in quarantine."""
    strange: tuple[str, ...] = ()
    """Servable, and not in the catalogue."""
    doubled: tuple[str, ...] = ()
    """Servable more than once, or servable and in quarantine."""

    @property
    def gaps(self) -> int:
        return len(self.missing) + len(self.strange) + len(self.doubled)


@dataclass(frozen=True)
class Comparison:
    """A candidate against the live version. `churn` is over `queries` replayed queries of this `origin`; `lost` are product ids."""

    queries: int = 0
    origin: str = ""
    churn: float = 0.0
    encoder_before: str = ""
    encoder_now: str = ""
    lost: tuple[str, ...] = ()
    products_before: int = 0

    @property
    def encoder_changed(self) -> bool:
        return self.encoder_before != self.encoder_now
