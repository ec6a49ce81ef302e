"""Opened segments, and groups of them that one engine searches: masks, handles, and the search of one group.

Where products have several pictures, an engine's positions are pictures: masks of products are expanded to them, and what is found
is collapsed to products (serving/index/pictures.py). Other segments know nothing of it.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from serving.contract.manifest import Scalar
from serving.index.engine import Engine, Mask, Vectors
from serving.index.merge import Neighbors, empty, pad, put
from serving.index.pictures import Pictures, best_pictures

EXACT_SHARE = 0.03
"""At or below this share of matching vectors the search is exact: as fast as the index there, and complete
(measured: 0.11-0.13 ms at <= 1 % of 100k x 128, docs/benchmarks.md)."""
EXACT_ROWS = 30_000
"""Most vectors of an exact search that a filter leads to: reading and comparing takes a third of a microsecond a vector."""
WIDENING = (8, 64)
"""Factors of effort for queries that found fewer than k products."""
MAX_SPREAD = 16


@dataclass(eq=False)
class OpenSegment:
    """An opened base or delta. `engine`: None where shard processes hold it; `alive` (rows,) bool: None where no row is hidden.

    `rows` are products; `pictures` say which positions are theirs, None where position i is row i.
    """

    engine: Vectors | None
    start: int
    rows: int
    alive: np.ndarray | None
    base: bool = True
    pictures: Pictures | None = None

    @property
    def vectors(self) -> int:
        """The number of positions."""
        return self.rows if self.pictures is None else len(self.pictures.rows)

    @property
    def live_vectors(self) -> int:
        """The number of positions that no tombstone hides."""
        return self.vectors if self.alive is None else int(self.expand(self.alive).sum())

    def live(self) -> np.ndarray:
        """Which rows are live: (rows,) bool."""
        return np.ones(self.rows, bool) if self.alive is None else self.alive

    @property
    def has_titles(self) -> bool:
        """Whether some positions are titles, which only words find."""
        return self.pictures is not None and self.pictures.depicted is not None

    @property
    def live_titles(self) -> int:
        """The number of titles that no tombstone hides."""
        return self.live_vectors - int(self.expand(self.live(), titles=False).sum())

    def depicted(self, rows: np.ndarray) -> np.ndarray:
        """A mask of rows without those that have no picture."""
        shown = None if self.pictures is None else self.pictures.depicted
        return rows if shown is None else rows & shown

    def expand(self, rows: np.ndarray, titles: bool = True) -> np.ndarray:
        """A mask of rows as one of positions; without `titles`, of pictures alone."""
        if self.pictures is None:
            return rows
        mask = rows[self.pictures.rows]
        return mask if titles or not self.has_titles else mask & (self.pictures.places >= 0)

    def positions_of(self, row: int) -> np.ndarray:
        """Positions (n,) of the pictures of the product with this handle, the main one first."""
        local = row - self.start
        return np.array([local]) if self.pictures is None else self.pictures.of_row(local)


@dataclass(frozen=True, eq=False)
class Selection:
    """What of a group may be returned: `mask` of its positions (None: all), and how many products and positions these are."""

    mask: Mask | None
    products: int
    positions: int


class SegmentGroup:
    """Segments searched as one: an engine over one segment, or over all that share one template's training."""

    def __init__(self, engine: Engine, segments: list[OpenSegment]) -> None:
        self.engine, self.segments, self.vectors = engine, segments, engine.rows
        sizes = np.array([s.vectors for s in segments])
        self.ends = np.cumsum(sizes)
        self.begins = self.ends - sizes
        self.shifts = np.array([s.start for s in segments]) - self.begins
        self.several = any(s.pictures is not None for s in segments)
        self.titles = any(s.has_titles for s in segments)
        hidden = any(s.alive is not None for s in segments)
        self.alive = Mask(concatenated([s.expand(s.live()) for s in segments])) if hidden else None
        live = [s.rows if s.alive is None else int(s.alive.sum()) for s in segments]
        self.all = Selection(self.alive, sum(live), self.vectors if self.alive is None else self.alive.count)

    @cached_property
    def most_pictures(self) -> int:
        """The most pictures that one product has."""
        return max(1 if s.pictures is None else s.pictures.most for s in self.segments)

    @cached_property
    def depicted(self) -> Selection:
        """What is live and a picture."""
        return self._selection([s.live() for s in self.segments], titles=False)

    def select(self, allowed: np.ndarray | None, words: bool = False) -> Selection:
        """What is live and, by the handles' mask `allowed` (n,) bool, allowed; None: all that is live. Titles only for `words`."""
        titles = words or not self.titles
        if allowed is None:
            return self.all if titles else self.depicted
        rows = [allowed[s.start : s.start + s.rows] for s in self.segments]
        if not self.several:
            mine = concatenated(rows)
            mask = Mask(mine if self.alive is None else mine & self.alive.allowed)
            return Selection(mask, mask.count, mask.count)
        live = [r if s.alive is None else r & s.alive for s, r in zip(self.segments, rows, strict=True)]
        return self._selection(live, titles)

    def _selection(self, rows: list[np.ndarray], titles: bool) -> Selection:
        """The selection of these rows of each segment (n,) bool, of their titles too or of their pictures alone."""
        if not titles:
            rows = [s.depicted(r) for s, r in zip(self.segments, rows, strict=True)]
        mask = Mask(concatenated([s.expand(r, titles) for s, r in zip(self.segments, rows, strict=True)]))
        return Selection(mask, sum(int(np.count_nonzero(r)) for r in rows), mask.count)

    def handles(self, positions: np.ndarray) -> np.ndarray:
        """Converts positions to handles where each is a row; -1 stays."""
        if len(self.segments) == 1 and not self.segments[0].start:
            return positions
        segment = np.searchsorted(self.ends, np.maximum(positions, 0), side="right")
        return np.where(positions < 0, -1, positions + self.shifts[segment])

    def products(self, found: Neighbors, k: int) -> Neighbors:
        """Converts what the engine found to handles: of each product the best picture, where products have several."""
        if not self.several:
            return pad(Neighbors(found.similarity, self.handles(found.rows)), k)
        positions = np.maximum(found.rows, 0)
        owner = np.searchsorted(self.ends, positions, side="right").clip(max=len(self.segments) - 1)
        rows, places = positions + self.shifts[owner], np.zeros(positions.shape, np.int16)
        for number in np.unique(owner):
            segment = self.segments[number]
            if segment.pictures is not None:
                mine = owner == number
                local = positions[mine] - self.begins[number]
                rows[mine] = segment.start + segment.pictures.rows[local]
                places[mine] = segment.pictures.places[local]
        return best_pictures(Neighbors(found.similarity, np.where(found.rows < 0, -1, rows), pictures=places), k)

    def exact(self, selected: Selection, xq: np.ndarray, k: int) -> Neighbors:
        """Exact k nearest products: compares every selected stored vector."""
        positions = np.arange(self.vectors) if selected.mask is None else selected.mask.positions
        enough = k * self.most_pictures if self.several else k
        return self.products(self.engine.nearest(xq, positions, min(enough, len(positions))), k)

    def search(self, selected: Selection, xq: np.ndarray, k: int, params: dict[str, Scalar]) -> Neighbors:
        """k nearest products; fewer only where fewer than k match."""
        few = max(min(EXACT_SHARE * self.vectors, EXACT_ROWS), k)
        if selected.mask is not None and selected.positions <= few:
            return self.exact(selected, xq, k)
        # Where a filter keeps one vector in f, the k nearest matching ones lie about f times as many lists away.
        spread = min(round(self.vectors / selected.positions), MAX_SPREAD)
        if self.several:
            return self._search_pictures(selected, xq, k, params, spread)
        wanted = min(k, selected.products)
        found = self.engine.search(xq, wanted, selected.mask, params, spread)
        short = _incomplete(found)
        for factor in WIDENING:
            if not len(short):
                break
            again = self.engine.search(xq[short], wanted, selected.mask, params, spread * factor)
            found.similarity[short], found.rows[short] = again.similarity, again.rows
            short = _incomplete(found)
        result = self.products(found, k)
        if len(short):
            put(result, short, self.exact(selected, xq[short], k))
        return result

    def _search_pictures(self, selected: Selection, xq: np.ndarray, k: int, params: dict[str, Scalar], spread: int) -> Neighbors:
        """As `search`, over pictures: as many as hold k products on average are fetched, and more for queries that find fewer.

        A full list with fewer products is doubled; one that is not full is searched with more effort, and at last exactly.
        """
        wanted = min(k, selected.products)
        fetch = min(-(-wanted * selected.positions // selected.products), selected.positions)
        enough = min(wanted * self.most_pictures, selected.positions)
        result = empty(len(xq), k, pictures=True)
        waiting, effort, efforts = np.arange(len(xq)), spread, iter(WIDENING)
        while len(waiting):
            found = self.engine.search(xq[waiting], fetch, selected.mask, params, effort)
            best = self.products(found, k)
            put(result, waiting, best)
            lacking = best.rows[:, wanted - 1] < 0
            full = found.rows[lacking, -1] >= 0
            waiting = waiting[lacking]
            if full.any():
                fetch = min(2 * fetch, enough)
            if not full.all():
                factor = next(efforts, 0)
                if not factor:
                    put(result, waiting, self.exact(selected, xq[waiting], k))
                    break
                effort = spread * factor
        return result


def _incomplete(found: Neighbors) -> np.ndarray:
    """Queries (n,) int that found fewer than k rows: their last column is -1."""
    return np.flatnonzero(found.rows[:, -1] < 0)


def concatenated(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates masks; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, bool)
