"""What an embedding run will cost, before it starts: pictures, titles, hours, money and bytes."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.palette import PALETTE_TYPE
from tasks import storage
from tasks.catalog.snapshot import Snapshot
from tasks.embed.image_hash_cache import HASH_CACHE, read_cache, snapshot_pictures
from tasks.embed.store import SHA_TYPE, EmbeddingStore, rejected_images
from tasks.embed.titles import bare_titles, missing_titles
from tasks.records import Record
from tasks.watch.cost import Prices, Work, cost

KEY_BYTES, SIZE_BYTES, TIME_BYTES = 8, 8, 8
"""int64 key; width and height as int32; a timestamp: beside checksum, vector and palette the columns of a stored row."""


@dataclass(frozen=True)
class Pace(Record):
    """Pictures a second that this encoder embeds here (0: not measured), on how many cores and GPUs, and how that is known."""

    images_per_s: float
    source: str
    cores: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class PictureCount:
    """Distinct pictures of a snapshot: in all, with a vector in the store, rejected for their content, and left to embed.

    `unhashed` of those left are pictures whose content no earlier run has seen: each counts as one. `uris` are those left to embed.
    `rows` counts the pictures of all products, each as often as it is there.
    """

    pictures: int
    stored: int
    rejected: int
    unhashed: int
    uris: pa.Array
    rows: int = 0

    @property
    def to_embed(self) -> int:
        return len(self.uris)


@dataclass(frozen=True)
class TitlePlan(Record):
    """Distinct titles of products without a picture, how many of them have no vector, and how many a second this machine embeds (0: not
    measured) on its cores."""

    titles: int = 0
    to_embed: int = 0
    per_s: float = 0.0
    cores: float = 1.0


@dataclass(frozen=True)
class EmbeddingPlan(Record):
    """What the embedding step of a run has to do; `hours` and `cost` are 0 where there is nothing to do or no pace is known.

    `cost` is in the currency of the price settings, `bytes` what the store grows by. All three are of pictures and `titles`. `text` is
    the request for approval in Markdown.
    """

    encoder: str
    products: int
    pictures: int
    stored: int
    to_embed: int
    pace: Pace
    hours: float
    cost: float
    bytes: int
    needs_approval: bool
    summary: str
    text: str
    titles: TitlePlan = TitlePlan()


def titles_to_embed(snapshot: Snapshot, store: EmbeddingStore) -> tuple[int, list[str]]:
    """The number of distinct titles of products without a picture, and those without a vector in the store, in order of their hashes."""
    titles = set(bare_titles(snapshot).values())
    return len(titles), list(missing_titles(titles, store).values())


def count_pictures(snapshot: Snapshot, store_uri: str, store: EmbeddingStore) -> PictureCount:
    """Counts from the hash cache, without reading a picture: one whose file changed since still counts as the one it was."""
    uris = snapshot_pictures(snapshot)["image_uri"].drop_null()
    rows = len(uris)
    uris = pc.unique(uris.filter(pc.not_equal(uris, "")))
    known = read_cache(storage.join(store_uri, HASH_CACHE), snapshot.image_root)
    places = pc.index_in(uris, known["image_uri"])
    unhashed = uris.filter(pc.is_null(places))
    hashed = pa.table({"uri": uris, "sha": known["sha256"].take(places)}).filter(pc.is_valid(places))
    each = hashed.group_by("sha", use_threads=False).aggregate([("uri", "first")])
    commits = store.commits()
    stored = pc.is_in(each["sha"], store.checksums(commits))
    lasting = pa.array(list(rejected_images(commits, lasting=True)), SHA_TYPE)
    rejected = pc.and_(pc.is_in(each["sha"], lasting), pc.invert(stored))
    new = each.filter(pc.invert(pc.or_(stored, rejected)))["uri_first"].combine_chunks()
    return PictureCount(
        len(each) + len(unhashed), pc.sum(stored).as_py() or 0, pc.sum(rejected).as_py() or 0, len(unhashed),
        pa.concat_arrays([new, unhashed]), rows,
    )  # fmt: skip


def stored_bytes(pictures: int, to_embed: int, dim: int) -> int:
    """Bytes that the store grows by: a row for each new picture, and the run's own copy of all vectors by shard."""
    row = SHA_TYPE.byte_width + 2 * dim + PALETTE_TYPE.byte_width
    return to_embed * (row + SIZE_BYTES + TIME_BYTES) + pictures * (row + KEY_BYTES)


def make_plan(
    encoder: str, dim: int, products: int, count: PictureCount, pace: Pace, prices: Prices, approve_hours: float,
    titles: TitlePlan = TitlePlan(),
) -> EmbeddingPlan:  # fmt: skip
    """The plan from counts and measurements. Above `approve_hours` (0: never), or where no pace is known, a person is asked."""
    todo = count.to_embed
    hours = _hours(todo, pace.images_per_s) + _hours(titles.to_embed, titles.per_s)
    price = cost(Work(pace.images_per_s, 1.0, pace.cores, pace.gpus), todo, prices)
    price += cost(Work(titles.per_s, 1.0, titles.cores), titles.to_embed, prices)
    size = stored_bytes(max(products, count.rows), todo + titles.to_embed, dim)
    unknown = (todo > 0 and not pace.images_per_s) or (titles.to_embed > 0 and not titles.per_s)
    ask = approve_hours > 0 and (unknown or hours > approve_hours)
    counts = f"{todo} of {count.pictures} pictures to embed with encoder version {encoder}, {count.stored} have a vector"
    if count.rejected:
        counts += f", {count.rejected} cannot be used"
    if titles.titles:
        counts += f", and {titles.to_embed} of {titles.titles} titles of products without a picture"
    if not todo + titles.to_embed:
        summary = f"{counts}: nothing to embed"
    elif unknown:
        summary = f"{counts}; how long that takes is not known ({pace.source})"
    else:
        speed = f"{pace.images_per_s:.1f} pictures/s ({pace.source})"
        speed += f" and {titles.per_s:.1f} titles/s" if titles.to_embed else ""
        summary = f"{counts}: {duration(hours)} at {speed}, at a cost of {price:.2f}, {size / 2**30:.2f} GiB in the store"
    text = approval_text(encoder, products, count, pace, (hours, price, size), approve_hours, titles)
    return EmbeddingPlan(
        encoder, products, count.pictures, count.stored, todo, pace, hours, price, size, ask, summary, text, titles
    )  # fmt: skip


def _hours(things: int, per_s: float) -> float:
    return things / per_s / 3600 if per_s else 0.0


def approval_text(
    encoder: str, products: int, count: PictureCount, pace: Pace, price: tuple[float, float, int], approve_hours: float,
    titles: TitlePlan,
) -> str:  # fmt: skip
    """The request for approval in Markdown; `price` is hours, cost and bytes."""
    hours, money, size = price
    measured = f"{pace.images_per_s:.1f}" if pace.images_per_s else "not known"
    rows = [
        ("Products", f"{products:,}"),
        ("Pictures to embed", f"{count.to_embed:,} of {count.pictures:,}"),
        ("of these never seen before", f"{count.unhashed:,}"),
        ("Pictures that have a vector", f"{count.stored:,}"),
        ("Pictures a second", f"{measured} ({pace.source})"),
        *_title_rows(titles),
        ("Time", duration(hours) if hours else "not known"),
        ("Cost", f"{money:.2f} (VITRINE_PRICE_CORE_HOUR, VITRINE_PRICE_GPU_HOUR; {pace.cores:g} cores, {pace.gpus:g} GPUs)"),
        ("Bytes in the store", f"{size / 2**30:.2f} GiB"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"Encoder version {encoder} is champion, and the catalogue has to be embedded with it. More than {approve_hours:g} hours "
        f"(VITRINE_APPROVE_HOURS) need a person's approval.\n\n| | |\n|---|---|\n{table}\n\nShoppers keep the live version, and hourly "
        "changes go on reaching them through it. Reject, and nothing is embedded; point the alias `champion` back to the former version "
        "if it is to stay."
    )


def _title_rows(titles: TitlePlan) -> list[tuple[str, str]]:
    if not titles.titles:
        return []
    speed = f", {titles.per_s:.1f} a second by {titles.cores:g} cores" if titles.per_s else ""
    return [("Titles to embed, of products without a picture", f"{titles.to_embed:,} of {titles.titles:,}{speed}")]


def duration(hours: float) -> str:
    """Hours as a person says them: "40 s", "12 min", "3.5 hours"."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} hours"
