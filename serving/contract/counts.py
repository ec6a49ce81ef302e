"""The counts of an index version: where every product of the catalogue is, and how many pictures that makes."""

from serving.contract.files import FrozenModel
from serving.contract.provenance import Count, optional


class Counts(FrozenModel):
    """Reconciled product counts: catalogue == embedded + quarantined; servable == embedded.

    `pictures` are those that can be found, of the servable products, where some have several: one vector each, so that a picture that a
    product has twice counts once. `titles` are servable products without any picture, found by words alone, where there are some: the one
    vector of such a product counts among `pictures`. `quarantined_pictures` are those that cannot be used, `quarantined_rows` rows of the
    source that the snapshot set aside, so that they never became products: the source had the snapshot's rows and these. None: not counted.
    """

    catalogue: Count
    embedded: Count
    quarantined: Count
    indexed: Count
    tombstoned: Count = 0
    servable: Count
    pictures: Count | None = optional()
    titles: Count | None = optional()
    quarantined_rows: Count | None = optional()
    quarantined_pictures: Count | None = optional()

    @property
    def of_pictures(self) -> str:
        """The pictures, as text that continues a sentence about the products; "" where each has one."""
        titles = f"; {self.titles:,} have no picture and are found by words alone" if self.titles else ""
        if self.pictures is None:
            return titles
        found, lost = self.pictures - (self.titles or 0), self.quarantined_pictures or 0
        return f"{titles}; of their pictures {found:,} can be found and {lost:,} are in quarantine"

    @property
    def set_aside(self) -> str:
        """The rows that are no products, as text that continues a sentence about the products; "" for none."""
        rows = self.quarantined_rows or 0
        return f"; {rows:,} more row{'s' * (rows > 1)} of the snapshot's source cannot be used" if rows else ""
