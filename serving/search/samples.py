"""Sampled real queries, kept in memory for promotions, gates and monitoring to replay.

Private by design: a sample holds the query's vector and the photo's sha256. Photos are kept only where a setting allows it, texts
never; requests with a user, or with `Sec-GPC: 1`, are never sampled.
"""

import base64
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from serving.contract.box import Box

PHOTO_BYTES = 64 * 2**20
"""Limit of all kept photos; the oldest samples lose theirs first."""


@dataclass(frozen=True)
class Sample:
    """One sampled query: its unit vector (d,) float32, and the fingerprint of the encoder that made it.

    `number` counts from the start of the process. `kind`: photo, text, mixed, product or vector. `photo_sha256` is "" without a
    photo, `photo` None unless photos are kept; `box` is the part of the photo that was searched for.
    """

    number: int
    at: str
    kind: str
    fingerprint: str
    photo_sha256: str
    vector: np.ndarray
    photo: bytes | None = None
    box: Box | None = None

    def wire(self) -> dict[str, Any]:
        """The sample as JSON: vector in base64 of little-endian float32, photo in base64 or null."""
        return {
            "at": self.at,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "photo_sha256": self.photo_sha256,
            "vector": base64.b64encode(self.vector.astype("<f4").tobytes()).decode(),
            "box": self.box.model_dump() if self.box is not None else None,
            "photo": base64.b64encode(self.photo).decode() if self.photo is not None else None,
        }


class Samples:
    """At most `kept` queries, each kept with probability `rate`. Safe for several threads; gone when the process ends."""

    def __init__(self, rate: float, capacity: int, photos: bool = False, chance: Callable[[], float] = random.random) -> None:
        self.rate, self.photos, self.chance = rate, photos, chance
        self.ring: deque[Sample] = deque(maxlen=max(capacity, 0))
        self.lock = threading.Lock()
        self.count = 0

    def offer(
        self, kind: str, fingerprint: str, photo_sha256: str, vector: np.ndarray, photo: bytes | None, box: Box | None = None
    ) -> None:
        """Keeps this query with probability `rate`, its vector (d,) at unit length.

        A product's vector from an index of codes alone is an estimate of another length, which a replay would be refused.
        """
        if self.chance() >= self.rate:
            return
        at = datetime.now(UTC).isoformat(timespec="seconds")
        own = np.array(vector, np.float32) / np.float32(max(float(np.linalg.norm(vector)), 1e-12))
        with self.lock:
            self.count += 1
            sample = Sample(self.count, at, kind, fingerprint, photo_sha256, own, photo if self.photos else None, box)
            self.ring.append(sample)
            if sample.photo is not None:
                self._forget_photos()

    def newest(self, limit: int, fingerprint: str = "") -> list[Sample]:
        """The newest samples first, of one encoder where a fingerprint is given."""
        with self.lock:
            found = [s for s in reversed(self.ring) if not fingerprint or s.fingerprint == fingerprint]
        return found[:limit]

    def _forget_photos(self) -> None:
        room = PHOTO_BYTES
        for place in range(len(self.ring) - 1, -1, -1):
            sample = self.ring[place]
            if sample.photo is None:
                continue
            room -= len(sample.photo)
            if room < 0:
                self.ring[place] = replace(sample, photo=None)
