"""Which connections of a server are open, and which of them makes room when there are too many, in constant time."""

import math
from collections import Counter, defaultdict
from typing import Protocol

from serving.api.client_address import lies_in, read_networks

HEALTH_RESERVE = 16
"""Connections beyond the most, for health alone: what watches a replica is answered while every other connection is at work."""


class Connection(Protocol):
    """One connection, by its peer's `address`. `only_health` marks one of the reserve."""

    address: str
    only_health: bool

    def close(self) -> None: ...


class OpenConnections:
    """At most `limit` connections, `share` of them from one address, except from `proxies` (addresses and networks).

    Beyond, the connection that has been silent longest, of the same address where that has its share, is closed in favour of the new
    one; where none is silent, the new one is of the reserve, where again the longest silent one makes room. `turned_away` counts the
    connections of this process that were closed for it. For use on the event loop.
    """

    turned_away = 0

    def __init__(self, limit: int = 1000, share: float = 1.0, proxies: tuple[str, ...] = ()) -> None:
        self.limit, self.most_of_one, self.proxies = limit, share_of(limit, share), read_networks(proxies)
        self.ordinary: set[Connection] = set()
        self.reserve: set[Connection] = set()
        self.by_address: Counter[str] = Counter()
        self.silent: dict[Connection, None] = {}
        self.silent_by_address: defaultdict[str, dict[Connection, None]] = defaultdict(dict)
        self.silent_reserve: dict[Connection, None] = {}

    def is_proxy(self, address: str) -> bool:
        return lies_in(address, self.proxies)

    def admit(self, new: Connection) -> bool:
        """Whether a new connection may stay; it is silent until `at_work`."""
        if self.by_address[new.address] >= self.most_of_one and not self.is_proxy(new.address):
            new.only_health = not self._close_first(self.silent_by_address.get(new.address, {}))
        elif len(self.ordinary) >= self.limit:
            new.only_health = not self._close_first(self.silent)
        if new.only_health:
            if len(self.reserve) >= HEALTH_RESERVE and not self._close_first(self.silent_reserve):
                OpenConnections.turned_away += 1
                return False
            self.reserve.add(new)
        else:
            self.ordinary.add(new)
            self.by_address[new.address] += 1
        self.fell_silent(new)
        return True

    def fell_silent(self, connection: Connection) -> None:
        """The connection waits for a request, or for the rest of one, from now on."""
        if connection in self.reserve:
            self.silent_reserve[connection] = None
        elif connection in self.ordinary:
            self.silent[connection] = None
            self.silent_by_address[connection.address][connection] = None

    def at_work(self, connection: Connection) -> None:
        """A request of the connection is whole, and being answered."""
        self.silent_reserve.pop(connection, None)
        if connection in self.silent:
            del self.silent[connection]
            of_address = self.silent_by_address[connection.address]
            del of_address[connection]
            if not of_address:
                del self.silent_by_address[connection.address]

    def leave(self, connection: Connection) -> None:
        """The connection is closed; nothing, where it is known."""
        self.at_work(connection)
        self.reserve.discard(connection)
        if connection in self.ordinary:
            self.ordinary.discard(connection)
            self.by_address[connection.address] -= 1
            if not self.by_address[connection.address]:
                del self.by_address[connection.address]

    def _close_first(self, silent: dict[Connection, None]) -> bool:
        """Closes the one that has been silent longest. False: there is none."""
        longest = next(iter(silent), None)
        if longest is None:
            return False
        self.leave(longest)
        OpenConnections.turned_away += 1
        longest.close()
        return True


def share_of(limit: int, share: float) -> int:
    """How many of `limit` places one address may hold: at least one."""
    return max(1, math.ceil(limit * share))
