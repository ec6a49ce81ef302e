"""User profiles from the feature store: `user:<id>` holds a JSON object {"brands": {…}, "categories": {…}, "price": …}.

An unavailable store, or an unknown user, gives an answer that is not personalised; it never fails a search.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from pydantic import ValidationError

from serving.ranking.ranker import User

AWAY_S = 1.0


class Profiles(Protocol):
    """Looks up users by id. `failures` counts look-ups that failed."""

    failures: int

    def read(self, user_id: str) -> User | None: ...


class NoProfiles:
    """The profiles of a replica without a feature store: no user is known."""

    failures = 0

    def read(self, user_id: str) -> User | None:
        return None


class RedisProfiles:
    """Profiles in Redis, read with a client that does not decode; skipped for AWAY_S after an error."""

    def __init__(self, redis: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self.redis, self.clock = redis, clock
        self.failures = 0
        self.away_until = 0.0
        self.lock = threading.Lock()

    def read(self, user_id: str) -> User | None:
        from redis import RedisError

        if self.clock() < self.away_until:
            return None
        try:
            data = self.redis.get(f"user:{user_id}")
            return None if data is None else User.model_validate_json(data)
        except (RedisError, OSError):
            self.away_until = self.clock() + AWAY_S
        except ValidationError:
            pass
        with self.lock:
            self.failures += 1
        return None
