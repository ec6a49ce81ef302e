"""Authentication and rate limits: the admin token, and API keys stored as their sha256, each with a token bucket."""

import hashlib
import hmac
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from serving.api.errors import ApiError
from serving.contract.files import FrozenModel, first_error


class ApiKey(FrozenModel):
    """One API key: a random text stored as its sha256. `per_minute` is both its rate of searches and its largest burst."""

    name: str = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    per_minute: int = Field(default=600, ge=1)


def read_keys(path: str) -> tuple[ApiKey, ...]:
    """Reads API keys from a JSON file, a list of {name, sha256, per_minute}. "": none. Raises ValueError naming what is wrong."""
    if not path:
        return ()
    try:
        return tuple(TypeAdapter(list[ApiKey]).validate_python(json.loads(Path(path).read_text())))
    except OSError as error:
        raise ValueError(f"VITRINE_API_KEYS={path!r} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(f"VITRINE_API_KEYS={path!r}: {first_error(error)}") from None
    except ValueError:
        raise ValueError(f"VITRINE_API_KEYS={path!r} is not JSON") from None


class Access:
    """Checks credentials and rates. Without keys anybody may search; without an admin token the admin routes are closed."""

    def __init__(self, admin_token: str, keys: tuple[ApiKey, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self.admin_token, self.clock = admin_token, clock
        self.keys = {k.sha256: k for k in keys}
        self.buckets = {k.sha256: (float(k.per_minute), clock()) for k in keys}
        self.lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether searching needs no key."""
        return not self.keys

    def admit(self, headers: Mapping[str, str], searches: int = 1) -> None:
        """Admits `searches` where no key is needed, the caller is an admin, or the key has enough left. Raises what `check_key` does."""
        if not self.open and not self.is_admin(headers.get("authorization", "")):
            self.check_key(headers.get("x-api-key", ""), searches)

    def is_admin(self, authorization: str) -> bool:
        """Whether the header is `Bearer <admin token>`; the token is compared in constant time, the scheme ignoring case."""
        scheme, _, token = authorization.partition(" ")
        if not self.admin_token or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(token.strip().encode(), self.admin_token.encode())

    def check_admin(self, authorization: str) -> None:
        """Raises ApiError(401) unless the header carries the admin token."""
        if not self.is_admin(authorization):
            raise ApiError(
                401, "this needs the admin token: Authorization: Bearer …", "unauthorized", {"WWW-Authenticate": "Bearer"}
            )

    def check_key(self, api_key: str, searches: int = 1) -> None:
        """Takes `searches` from a key's token bucket.

        Raises ApiError: 401 for an unknown key, 429 when too few are left, 422 when the bucket never holds so many.
        """
        digest = hashlib.sha256(api_key.encode()).hexdigest()  # comparing digests says nothing about the key
        key = self.keys.get(digest)
        if key is None:
            raise ApiError(401, "this replica asks for an API key: X-Api-Key: …", "api_key", {"WWW-Authenticate": "ApiKey"})
        if searches > key.per_minute:
            detail = (
                f"the key {key.name!r} may ask {key.per_minute} searches at once; these are {searches}, send fewer in a batch"
            )
            raise ApiError(422, detail, "rate")
        wait_s = self._take(key, searches)
        if wait_s:
            detail = f"the key {key.name!r} may search {key.per_minute} times a minute; try again in {wait_s:.0f} s"
            raise ApiError(429, detail, "rate", {"Retry-After": f"{wait_s:.0f}"})

    def _take(self, key: ApiKey, searches: int) -> float:
        """Takes from the bucket and returns 0, or returns the seconds (at least 1) until it holds enough."""
        now, rate = self.clock(), key.per_minute / 60
        with self.lock:
            left, at = self.buckets[key.sha256]
            left = min(float(key.per_minute), left + rate * (now - at))
            enough = left >= searches
            self.buckets[key.sha256] = (left - searches if enough else left, now)
        return 0.0 if enough else float(max(1, math.ceil((searches - left) / rate - 1e-6)))
