"""Service times of single queries on a running replica: measured over HTTP, stored as JSON."""

import io
import json
import time
from pathlib import Path

import httpx
import numpy as np

from tasks.capacity.simulation import Times
from tasks.errors import VitrineError

WARM_UP = 20


def measure_times(url: str, photos: list[bytes], timeout_s: float = 30.0) -> Times:
    """Searches each photo once, sequentially; the first 20 are warm-up. Raises VitrineError when a search fails."""
    rows = []
    with httpx.Client(base_url=url, timeout=timeout_s, trust_env=False) as client:
        products = _products(client, url)
        for number, photo in enumerate(photos):
            began = time.perf_counter()
            answer = client.post("/v1/search", files={"image": photo})
            took_ms = 1e3 * (time.perf_counter() - began)
            if answer.status_code != 200:
                raise VitrineError(f"{url} answered {answer.status_code}: {answer.json().get('detail', '')}")
            told = answer.json()["timings_ms"]
            if "encode" not in told or "retrieve" not in told:
                raise VitrineError(f"{url} answered a photo from its cache; measure with photos that it has not seen yet")
            if number >= WARM_UP:
                rows.append((told["decode"] + told["encode"], told["retrieve"], told["rank"], took_ms))
    if not rows:
        raise VitrineError(f"{len(photos)} photos, where more than {WARM_UP} are needed")
    encode, retrieve, rank, took = np.array(rows, np.float64).T
    return Times(encode, retrieve, rank, np.maximum(took - encode - retrieve - rank, 0.0), products)


def read_times(path: Path) -> Times:
    """Reads times that `write_times` stored. Raises VitrineError when the file is something else."""
    try:
        kept = json.loads(path.read_text())
        arrays = {n: np.array(kept[n], np.float64) for n in ("encode", "retrieve", "rank", "rest")}
        return Times(**arrays, products=int(kept["products"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VitrineError(f"{path} holds no measured times: {error}; write one with vitrine capacity --save") from None


def write_times(path: Path, times: Times) -> None:
    kept = {n: getattr(times, n).round(4).tolist() for n in ("encode", "retrieve", "rank", "rest")}
    path.write_text(json.dumps({"products": times.products, "unit": "ms"} | kept))


def synthetic_photos(count: int, seed: int) -> list[bytes]:
    """JPEGs of 500 x 500, about 25 kB: soft shapes with grain. A query's cost does not depend on its content."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    photos = []
    for _ in range(count):
        soft = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((500, 500), Image.Resampling.BICUBIC)
        grain = np.asarray(soft).astype(np.int16) + rng.normal(0, 5, (500, 500, 1)).astype(np.int16)
        stream = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=75)
        photos.append(stream.getvalue())
    return photos


def _products(client: httpx.Client, url: str) -> int:
    try:
        state = client.get("/v1/version").raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: it answers, but no JSON
        raise VitrineError(
            f"{url!r} does not answer as a replica ({type(error).__name__}); start one, or name another with --url"
        ) from None
    if not state["live"]:
        raise VitrineError(f"{url} serves no index version yet")
    return int(state["live"]["products"])
