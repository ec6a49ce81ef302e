"""Settings of a replica: typed VITRINE_ environment variables, with defaults for a single machine."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PREFIX = "VITRINE_"
ROLES = ("all", "shard", "gateway")
GATEWAY_WORKERS, GATEWAY_QUEUE = 16, 176
REMOVED = ("together", "encode_batch")
"""Settings of earlier versions: still accepted, and ignored with a warning."""
DAY_S = 86_400
HEADER_VARIABLES = ("MLFLOW_TRACKING_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN")
"""Secrets that libraries read by themselves and put into headers: their own errors would show the value."""


def setting(
    default: Any,
    means: str,
    example: object = "",
    *,
    area: str = "",
    secret: bool = False,
    header: bool = False,
    least: float | None = None,
    most: float = float("inf"),
) -> Any:
    """A setting with what it means and an example value; `vitrine settings` and docs/operate/settings.md show both.

    `area` is the heading of this setting and of those that follow without one. `secret` values are never shown; a
    `header` is a secret that is sent in one. `least` and `most` are inclusive bounds of a number.
    """
    metadata = {"means": means, "example": str(example), "area": area, "secret": secret or header, "header": header}
    return field(default=default, metadata=metadata | ({"bounds": (least, most)} if least is not None else {}))


KIND_NAMES = {bool: "yes or no", int: "a whole number", float: "a number", str: "a text", tuple: "a list", type(Path()): "a path"}
"""What a setting of a type has to be, for people."""


def header_value(variable: str, text: str) -> str:
    """A secret as it is sent in an HTTP header: without the line break that ends a file of secrets. Raises ValueError, which names the
    variable and does not show the value, where no header can carry it."""
    value = text.strip()
    for place, char in enumerate(value, 1):
        if not " " <= char <= "~":
            what = "a line break" if char in "\r\n" else "no ASCII character" if char > "~" else "a control character"
            raise ValueError(
                f"{variable}: character {place} of it is {what}, which no HTTP header can carry (the value is not shown)"
            )
    return value


def check_header_variables(environ: Mapping[str, str]) -> None:
    """Raises ValueError where one of HEADER_VARIABLES is no `header_value` as it is."""
    for name in HEADER_VARIABLES:
        if (text := environ.get(name, "")) != header_value(name, text):
            raise ValueError(f"{name} begins or ends with a line break or a space, which no HTTP header can carry")


@dataclass(frozen=True)
class ServingSettings:
    """Settings of a replica, a shard or a gateway."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 in a container", "0.0.0.0", area="Versions and addresses")
    port: int = setting(8000, "port to listen on", 8100, least=0, most=65_535)
    mlflow_uri: str = setting("http://127.0.0.1:5000", "MLflow server whose aliases are followed", "https://mlflow.shop.example")
    release: str = setting("", "folder written by `vitrine release export`, served instead of MLflow's versions", "/srv/release")
    cache: Path = setting(
        Path(".vitrine/serving/cache"), "folder of fetched files and encoders, by checksum; replicas may share it",
        "/var/lib/vitrine",
    )  # fmt: skip
    cache_bytes: int = setting(
        20 * 2**30, "limit of that folder, bytes; the least recently used go first, never those of a version an alias names",
        50 * 2**30, least=0,
    )  # fmt: skip
    poll_s: float = setting(2.0, "seconds between two looks at the aliases", 10, least=0.01, most=DAY_S)
    image_root: str = setting(
        "", "folder of the product pictures that it shows; empty: the snapshot's own, if local", "/pictures"
    )
    notice: str = setting("", "a line on the search page", "Generated test data")
    encoder_runtime: str = setting(
        "onnxruntime", "runtime of the photo encoder: onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt or openvino", "openvino"
    )
    admin_token: str = setting(
        "", "bearer token of the admin routes and of promotions; empty: those routes are closed (401)", "a long random text",
        area="Access", header=True,
    )  # fmt: skip
    verify_key: str = setting(
        "", "PEM file of the Ed25519 public key that manifests must be signed with; empty: no signature is asked for",
        "/etc/vitrine/signing.pub.pem",
    )  # fmt: skip
    require_bound: bool = setting(
        False, "whether versions are refused that no registry tag binds to their manifest; else they load with a warning", 1
    )
    webhook_secret: str = setting(
        "", "HMAC secret of MLflow's alias webhooks (`vitrine webhook --replica`); empty: none is accepted",
        "a long random text", secret=True,
    )  # fmt: skip
    api_keys: str = setting("", "JSON file of API keys as their sha256; empty: no key is needed", "/etc/vitrine/keys.json")
    query_hosts: tuple[str, ...] = setting(
        (), "hosts that `image_url` of a search may name; empty: no photo is fetched by address", "cdn.shop.example"
    )
    workers: int = setting(2, "searches at once, one thread each; a gateway: 16", 4, area="Load", least=1)
    threads: int = setting(1, "threads of ONNX Runtime within one search", 2, least=1)
    queue: int = setting(
        78, "searches that wait beyond `VITRINE_WORKERS`, and photos waiting to be fetched; more are answered 503; a gateway: 176",
        40, least=0,
    )  # fmt: skip
    deadline_s: float = setting(
        5.0, "seconds from the whole body to the answer; past it 504, and no further phase starts", 2, least=0.01, most=DAY_S
    )
    drain_s: float = setting(
        0.0,
        "seconds for which a process that is told to end still answers, and sends its clients elsewhere",
        8,
        least=0,
        most=DAY_S,
    )
    connections: int = setting(
        1000, "open connections; beyond, the one that is silent longest is closed, or the new one; `ulimit -n` must allow them",
        4000, least=1,
    )  # fmt: skip
    head_s: float = setting(
        20.0, "seconds for a connection's first request head; a slower one is closed", 5, least=0.01, most=DAY_S
    )
    head_bytes: int = setting(
        32_768, "bytes of a request line and headers; more is answered 431 (nginx allows four buffers of 8 KiB)",
        16_384, least=1024,
    )  # fmt: skip
    body_s: float = setting(20.0, "seconds for a request body; slower is answered 408", 10, least=0.01, most=DAY_S)
    uploads: int = setting(
        128, "bodies above 64 KiB being received at once; beyond, the slowest gives way (408), or the new one (503)", 64, least=1
    )
    address_share: float = setting(
        0.8, "share of connections, uploads and waiting work that one address (IPv6: one /64) may hold; 1: all, for a trusted caller",
        0.3, least=0.01, most=1,
    )  # fmt: skip
    proxies: tuple[str, ...] = setting(
        (), "addresses and networks of proxies in front, whose X-Forwarded-For names the caller; they may hold all connections",
        "10.0.0.5,10.4.0.0/16",
    )  # fmt: skip
    max_image_bytes: int = setting(
        10 * 2**20, "bytes of a photo; more is answered 413; the whole body may be 1.4 times as large", 5 * 2**20, least=1
    )
    max_image_pixels: int = setting(
        50_000_000, "pixels of a photo, read from its header; more is answered 413", 24_000_000, least=1
    )
    max_whole_pixels: int = setting(
        25_000_000, "the same for all but RGB and grey JPEGs, which alone decode at a reduced size: a second at 25 million",
        12_000_000, least=1,
    )  # fmt: skip
    max_scans: int = setting(
        64, "scans of a progressive JPEG; more is answered 413 (most have 10, and every one passes over all pixels)", 32, least=1
    )
    cache_url: str = setting(
        "",
        "redis:// of caches that replicas share; empty: each has its own in memory",
        "redis://cache:6379/0",
        area="Caches, samples",
    )
    profiles_url: str = setting(
        "", "redis:// of user profiles (`user:<id>`); empty: only the request's own `user` counts", "redis://profiles:6379/0"
    )
    sample_rate: float = setting(
        0.05, "share of searches kept as samples (vector, sha256 of the photo) for promotions and live recall; 0: none",
        0.01, least=0, most=1,
    )  # fmt: skip
    sample_kept: int = setting(500, "samples kept, the newest", 2000, least=0)
    sample_photos: bool = setting(
        False, "keep the sampled photos too (64 MiB at most), so that another encoder can replay them", "yes"
    )
    otel_endpoint: str = setting(
        "", "OTLP/HTTP endpoint of traces (extra `otel`); empty: no tracing", "http://127.0.0.1:4318/v1/traces", area="Telemetry"
    )
    log: str = setting("json", "log format: json (an object a line) or text", "text")
    engine_address: str = setting(
        "", "address of the engine that a version's manifest names, where its base vectors are no FAISS files (docs/operate/engines.md)",
        "postgresql://vitrine@db/vectors", area="Other engines",
    )  # fmt: skip
    engine_token: str = setting("", "token that this engine asks for, as user:password or an API key", "root:secret", header=True)
    engine_timeout_s: float = setting(2.0, "seconds for one call of it, of at most three", 0.5, least=0.01, most=DAY_S)
    encoder_server: str = setting(
        "", "server that encodes photos instead of `VITRINE_ENCODER_RUNTIME`: triton or torchserve (docs/operate/encoder-servers.md)",
        "triton", area="Encoder servers",
    )  # fmt: skip
    encoder_address: str = setting(
        "", "address of that server: http://, of Triton also grpc:// (with TLS https://, grpcs://)", "http://triton:8000"
    )
    encoder_timeout_s: float = setting(1.0, "seconds for one call of it, of at most three", 0.3, least=0.01, most=DAY_S)
    role: str = setting(
        "all", "all: holds whole versions; shard: holds some shards for gateways; gateway: asks shard processes", "gateway",
        area="Shards and gateways",
    )  # fmt: skip
    shards: tuple[str, ...] = setting((), "role shard: the shards to hold", "0,2")
    shard_urls: tuple[str, ...] = setting(
        (), "role gateway: addresses of shard processes; a name that resolves to several stands for all of them",
        "http://shard-0:8100,http://shard-1:8100",
    )  # fmt: skip
    shard_map: str = setting(
        "",
        "role gateway, instead of `VITRINE_SHARD_URLS`: a file with an address a line, read again every two seconds",
        "/etc/shards",
    )
    shard_timeout_s: float = setting(
        1.0, "seconds a gateway waits for a shard before it answers without it", 0.2, least=0.01, most=DAY_S
    )
    shard_patience_s: float = setting(
        10.0, "seconds a starting gateway waits for missing shards before it serves without them", 60, least=0, most=DAY_S
    )
    hedges: float = setting(
        0.05, "share of shard requests that may be hedged: sent to a second process; 0: none", 0.1, least=0, most=1
    )
    probe_s: float = setting(0.5, "seconds between two probes of a shard process", 1, least=0.01, most=DAY_S)

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> "ServingSettings":
        """Reads settings from the environment. Raises ValueError naming the variable that does not parse, is out of bounds, or should
        go into a header that cannot carry it."""
        values: dict[str, Any] = {}
        check_header_variables(environ)
        for name in (PREFIX + removed.upper() for removed in REMOVED):
            if name in environ:
                log.warning("%s is ignored: searches are no longer worked on together; take it out of the environment", name)
        for spec in fields(cls):
            text = environ.get(PREFIX + spec.name.upper())
            if text is None:
                continue
            kind: Any = type(spec.default)
            given = f"{PREFIX}{spec.name.upper()}={text!r}"
            try:
                value = values[spec.name] = _parse(text, kind)
            except (ValueError, KeyError):
                raise ValueError(f"{given} is not {KIND_NAMES[kind]}") from None
            if spec.metadata["header"]:
                values[spec.name] = header_value(PREFIX + spec.name.upper(), text)
            if "bounds" in spec.metadata:
                least, most = spec.metadata["bounds"]
                if not least <= value <= most:  # also what is no number (nan)
                    upper = f" and at most {most:g}" if most < float("inf") else ""
                    raise ValueError(f"{given} is out of bounds: at least {least:g}{upper} is needed")
        if values.get("role") == "gateway":
            values = {"workers": GATEWAY_WORKERS, "queue": GATEWAY_QUEUE} | values
        return cls(**values)

    def shard_numbers(self) -> list[int]:
        """`shards` as sorted integers. Raises ValueError where it is not a list of numbers."""
        if not self.shards or not all(s.isdecimal() for s in self.shards):
            raise ValueError(
                f"VITRINE_SHARDS={','.join(self.shards)!r}: VITRINE_ROLE=shard needs the shards to hold, such as 0,2"
            )
        return sorted({int(s) for s in self.shards})


def _parse(text: str, kind: Any) -> Any:
    if kind is tuple:
        return tuple(p.strip() for p in text.split(",") if p.strip())
    if kind is bool:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}[text.lower()]
    return kind(text)
