"""Fetches photos by URL without server-side request forgery: allowed hosts only, never from a private network.

The connection goes to the address that was checked, so that a name cannot resolve to another one afterwards (DNS rebinding). Every
redirect is checked like the first URL.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from serving.contract.preprocess import ImageRejected

REDIRECTS = (301, 302, 303, 307, 308)
PORTS = {"https": 443, "http": 80}
CHUNK_BYTES = 65_536
IN_URLS = "%:/?#[]@!$&'()*+,;="
"""Characters of a URL that are not to be percent-encoded (RFC 3986): reserved ones, and % of what is encoded already."""
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The only public IPv6 addresses; all others are reserved, local, or embed IPv4."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Resolve = Callable[[str, int], list[str]]
T = TypeVar("T")
ReadResponse = Callable[[str, http.client.HTTPResponse], T]


def resolve(host: str, port: int) -> list[str]:
    """Resolves a name to its addresses. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True)
class Fetcher:
    """Fetches from `hosts` ("name" or "name:port"; empty: disabled). Only tests change `schemes` and `private`."""

    hosts: tuple[str, ...] = ()
    max_bytes: int = 10 * 2**20
    timeout_s: float = 5.0
    most_redirects: int = 3
    schemes: tuple[str, ...] = ("https",)
    private: bool = False
    resolve: Resolve = resolve

    def fetch(self, url: str) -> bytes:
        """Fetches the bytes at a URL, undecoded.

        Raises ImageRejected with a reason: not_enabled, forbidden_host, forbidden_address, redirects, too_many_bytes, timeout,
        missing, unreachable.
        """
        return self._follow("GET", url, self._body)

    def validator(self, url: str) -> str | None:
        """A photo's validator, by one HEAD request: its strong ETag, or its length and date. None: the host sends neither.

        Raises what `fetch` raises.
        """
        return self._follow("HEAD", url, _validator)

    def _follow(self, method: str, url: str, read_response: ReadResponse[T]) -> T:
        if not self.hosts:
            raise ImageRejected("not_enabled", "this replica fetches no photos by address; send the photo's bytes")
        latest = time.monotonic() + self.timeout_s
        for _ in range(self.most_redirects + 1):
            parts = self._allowed(url)
            try:
                found = self._request(method, parts, self._address(parts, latest), latest, read_response)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() >= latest or isinstance(error, TimeoutError):
                    raise ImageRejected(
                        "timeout", f"{parts.hostname} did not give the photo within {self.timeout_s:g} s"
                    ) from None
                raise ImageRejected("unreachable", f"the photo cannot be fetched from {parts.hostname}: {error}") from None
            if not isinstance(found, _Redirect):
                return found
            try:
                url = urljoin(url, found.url)
            except ValueError:
                raise ImageRejected("redirects", f"{parts.hostname} leads to what is not an address") from None
        raise ImageRejected("redirects", f"the address leads through more than {self.most_redirects} others")

    def _allowed(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS.get(parts.scheme, 0)
        except ValueError:
            raise ImageRejected("forbidden_host", "image_url is not an address") from None
        host = (parts.hostname or "").lower()
        names = {f"{host}:{port}"} | ({host} if port == PORTS.get(parts.scheme) else set())
        if parts.scheme not in self.schemes or parts.username or not names & {h.lower() for h in self.hosts}:
            where = f"{parts.scheme or 'no scheme'}://{host or 'nowhere'}"
            raise ImageRejected(
                "forbidden_host",
                f"photos are fetched by {' or '.join(self.schemes)} from the allowed hosts only, not from {where}",
            )
        return parts._replace(netloc=f"{parts.hostname}:{port}" if ":" not in host else f"[{host}]:{port}")

    def _address(self, parts: SplitResult, latest: float) -> str:
        """One of the host's addresses, after checking that all of them are public."""
        host = parts.hostname
        assert host is not None
        addresses = _within(latest - time.monotonic(), lambda: self.resolve(host, parts.port or 0))
        if not addresses:
            raise OSError("its name has no address")
        for address in addresses:
            if not self.private and not _public(address):
                raise ImageRejected("forbidden_address", f"{host} lies in a private network ({address})")
        return addresses[0]

    def _request(
        self, method: str, parts: SplitResult, address: str, latest: float, read_response: ReadResponse[T]
    ) -> "T | _Redirect":
        """Sends one request; returns what `read_response` returns, or the redirect. The connection is cut when the time is over."""
        assert parts.hostname is not None
        left = max(0.001, latest - time.monotonic())
        connection = _PinnedConnection(parts.hostname, parts.port or 0, address, parts.scheme == "https", left)
        ending = threading.Timer(left, connection.cut)
        ending.start()
        try:
            path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), IN_URLS)
            connection.request(
                method, path, headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "vitrine"}
            )
            answer = connection.getresponse()
            if answer.status in REDIRECTS:
                return _Redirect(quote(answer.getheader("Location") or "", IN_URLS, "latin-1"))
            if answer.status in (404, 410):
                raise ImageRejected("missing", f"{parts.hostname} has no such photo (it answered {answer.status})")
            if answer.status != 200:
                raise ImageRejected("unreachable", f"{parts.hostname} answered {answer.status} instead of a photo")
            found = read_response(parts.hostname, answer)
            if time.monotonic() >= latest:  # the end of what came is where we cut it, not where it ended
                raise TimeoutError
            return found
        finally:
            ending.cancel()
            connection.close()

    def _body(self, host: str, answer: http.client.HTTPResponse) -> bytes:
        data = bytearray()
        while chunk := answer.read(CHUNK_BYTES):
            data += chunk
            if len(data) > self.max_bytes:
                raise ImageRejected("too_many_bytes", f"the photo at {host} has more than {self.max_bytes} bytes")
        if answer.length:  # the connection was cut midway
            raise OSError(f"{answer.length} bytes are missing")
        return bytes(data)


@dataclass(frozen=True)
class _Redirect:
    url: str


def _validator(host: str, answer: http.client.HTTPResponse) -> str | None:
    tag, size, date = (answer.getheader(name) for name in ("ETag", "Content-Length", "Last-Modified"))
    if tag and not tag.startswith("W/"):
        return f"{size}-{tag}"
    return f"{size}-{date}" if size and date else None


class _PinnedConnection(http.client.HTTPConnection):
    """An HTTP(S) connection to `address` on behalf of `host`: sends its name and checks its certificate."""

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self.address, self.secure = address, secure
        self.opened: socket.socket | None = None
        """Outlives `sock`, which is None while the body of an answer comes that ends with its connection."""

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        self.opened = self.sock

    def cut(self) -> None:
        """Shuts the connection down from another thread."""
        if self.opened is not None:
            try:
                self.opened.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already


def _within(limit_s: float, call: Callable[[], T]) -> T:
    """Runs a call that has no timeout of its own. Raises TimeoutError after `limit_s`; the thread then ends when the call does."""
    found: Future[T] = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=work, name="lookup", daemon=True).start()
    return found.result(max(0.0, limit_s))


def _public(address: str) -> bool:
    """Whether an address is public; IPv4 embedded in IPv6 is judged as IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return found.is_global and not found.is_multicast
    inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF) if found in NAT64 else found.ipv4_mapped
    if inner is not None:
        return _public(str(inner))
    return found in GLOBAL_UNICAST and found.is_global and (found.sixtofour is None or found.sixtofour.is_global)
