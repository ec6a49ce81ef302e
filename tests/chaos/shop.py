"""What the shop does each hour, and whether everything agrees afterwards."""

from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from adbc_driver_postgresql import dbapi
from redis import Redis

from serving.index.searcher import Searcher
from tasks import storage
from tasks.catalog.changes.outbox import Outbox
from tasks.index.verify_version import check_index
from tasks.registry import INDEX_MODEL
from tests.catalogs import picture
from tests.chaos.stack import PRODUCTS, Stack
from tests.load import json_request, photo_request

BROKEN = "p-broken"
"""A product whose picture is no picture: it is in quarantine all the time."""
CHANGED = "p-changed"
"""A product that shows another picture each hour."""
COLUMNS = "product_id, title, brand, category, price, currency, in_stock, image_uri, updated_at"
NOW = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"


@dataclass
class Shop:
    """The shop's own program: it writes its tables, and triggers tell the outbox. Hour n changes one product, adds one, deletes one."""

    stack: Stack
    hour: int = 0
    names: list[str] = field(default_factory=list)

    def open(self) -> None:
        storage.write_bytes("s3://shop/pictures/images/broken.jpg", b"no picture")
        self._add(BROKEN, "images/broken.jpg")
        self._add(CHANGED, "images/0.jpg")
        self.change()

    def change(self) -> None:
        self.hour += 1
        image = self._picture(2 * self.hour)
        self._sql(
            f"UPDATE products SET image_uri = '{image}', price = {self.hour}, updated_at = {NOW} WHERE product_id = '{CHANGED}'"
        )
        self._add(f"p-new-{self.hour}", self._picture(2 * self.hour + 1))
        self._sql(f"DELETE FROM products WHERE product_id = 'p-new-{self.hour - 1}'")

    def _picture(self, number: int) -> str:
        name = f"images/hour-{number}.jpg"
        path = picture(self.stack.folder / "shop" / name, 1000 + number)
        storage.put_file(path, f"s3://shop/pictures/{name}")
        return name

    def _add(self, product_id: str, image: str) -> None:
        values = f"'{product_id}', 'new in hour {self.hour}', 'brand 0', 'kind 1 > leaf 3', 9.5, 'EUR', 1, '{image}', {NOW}"
        self._sql(f"INSERT INTO products ({COLUMNS}) VALUES ({values})")

    def _sql(self, command: str) -> None:
        with dbapi.connect(self.stack.database.uris["shop"]) as connection, connection.cursor() as cursor:
            cursor.execute(command)
            connection.commit()

    def searches(self) -> list[bytes]:
        """Searches by photo, for as many results as three pages ask for, and by product."""
        folder = self.stack.folder / "shop" / "photos"
        photos = [(folder / f"{n}-2.jpg").read_bytes() for n in range(PRODUCTS)]
        by_photo = [photo_request(photo, {"k": str(k)}) for photo in photos for k in (3, 10, 20)]
        return by_photo + [json_request({"product_id": f"p{n:03d}"}) for n in range(PRODUCTS)]

    def products(self) -> set[str]:
        with dbapi.connect(self.stack.database.uris["shop"]) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT product_id FROM products")
            return {row[0] for row in cursor.fetchall()}

    def disagreements(self, version: str, features: bool = True) -> list[str]:
        """What is not as it must be once `version` is live, as sentences: products, queue, replicas, registry, answers."""
        models = self.stack.direct
        aliases = models.aliases(INDEX_MODEL)
        manifest = models.index_manifest(aliases["live"])
        found = [f"live is version {aliases['live']} and not {version}"] if aliases["live"] != version else []
        found += [f"check of version {version}: {c.name}: {c.detail}" for c in check_index(manifest, models.file) if not c.passed]
        found += self._counts(manifest)
        if set(self.stack.live()) != {version}:
            found.append(f"the replicas serve {self.stack.live()}")
        outbox = Outbox.open(self.stack.catalog, existing=True)
        if outbox.count_waiting() or outbox.count_dead_letters():
            found.append(f"{outbox.count_waiting()} changes wait, {outbox.count_dead_letters()} are dead letters")
        outbox.close()
        versions = models.versions(INDEX_MODEL)
        keys = [v.tags["run_key"] for v in versions]
        found += [f"run {key} made {keys.count(key)} versions" for key in sorted(set(keys)) if keys.count(key) > 1]
        passed = {v.version for v in versions if v.tags.get("gates.verdict", v.tags["verdict"]) == "passed"}
        found += [f"{alias} names version {v}, which has not passed" for alias, v in aliases.items() if v not in passed]
        if features:
            with Redis.from_url(f"redis://127.0.0.1:{self.stack.relays['redis'].target}/0") as redis:
                told: Any = redis.get("features:live")
                found += [f"features of {told!r} are live"] if told != version.encode() else []
        return found + self._answers(version)

    def _counts(self, manifest: Any) -> list[str]:
        """catalogue = embedded + quarantined; embedded = servable <= indexed; and the same by product id."""
        counts, there = manifest.counts, self.products()
        searcher = Searcher.open(manifest, self.stack.direct.file)
        servable = {r["product_id"] for r in searcher.features.take(np.flatnonzero(searcher.live()), ["product_id"])}
        equal = (
            len(there) == counts.catalogue == counts.embedded + counts.quarantined
            and counts.quarantined == 1
            and counts.embedded == counts.servable == len(servable) <= counts.indexed
        )
        found = [] if equal else [f"{len(there)} products, but {counts}"]
        wrong = servable ^ (there - {BROKEN})
        return found + ([f"neither servable nor deleted: {sorted(wrong)}"] if wrong else [])

    def _answers(self, version: str) -> list[str]:
        """The pictures of this hour find their products; the product that was deleted is not there."""
        found = []
        for product, number in ((CHANGED, 2 * self.hour), (f"p-new-{self.hour}", 2 * self.hour + 1)):
            image = storage.read_bytes(f"s3://shop/pictures/images/hour-{number}.jpg")
            answer = httpx.post(f"{self.stack.url}/v1/search", files={"image": image}, timeout=30, trust_env=False)
            told = answer.json() if answer.status_code == 200 else {}
            if not told or told["version"]["index"] != version or told["results"][0]["product_id"] != product:
                found.append(f"{product} is not found by its picture: {answer.status_code} {answer.text[:150]}")
        gone = httpx.get(f"{self.stack.url}/v1/products/p-new-{self.hour - 1}/similar", timeout=30, trust_env=False)
        return found + ([f"a deleted product is answered {gone.status_code}"] if gone.status_code != 404 else [])
