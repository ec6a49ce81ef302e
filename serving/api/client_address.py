"""Who counts as one client where places are shared out by address."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CUSTOMER_BITS = 64
"""Bits of an IPv6 address that name a customer's network (RFC 6177): whoever has one has all 2**64 addresses in it."""


@lru_cache(4096)
def client_address(host: str) -> str:
    """An IPv4 address as it is, an IPv6 address as its /64 network, and what is neither as it is."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    rest = found.max_prefixlen - CUSTOMER_BITS
    return f"{ipaddress.IPv6Address(int(found) >> rest << rest)}/{CUSTOMER_BITS}"


def read_networks(spelled: Iterable[str]) -> tuple[Network, ...]:
    """The networks of `VITRINE_PROXIES`; an address is the network of itself alone. Raises ValueError naming what is neither."""
    networks = []
    for one in spelled:
        try:
            networks.append(ipaddress.ip_network(one, strict=False))
        except ValueError:
            raise ValueError(
                f"VITRINE_PROXIES holds {one!r}, which is neither an address nor a network such as 10.0.0.0/8"
            ) from None
    return tuple(networks)


def lies_in(host: str, networks: tuple[Network, ...]) -> bool:
    """Whether a host is an address of one of the networks."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(found in network for network in networks)
