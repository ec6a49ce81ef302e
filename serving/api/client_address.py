"""Who counts as one client where places are shared out by address."""

import ipaddress
from functools import lru_cache

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
