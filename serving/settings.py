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


def _number(default: float, least: float, most: float = float("inf")) -> Any:
    """A numeric setting with inclusive bounds."""
    return field(default=default, metadata={"bounds": (least, most)})


@dataclass(frozen=True)
class ServingSettings:
    """Settings of a replica. `release`: a folder written by `vitrine release export`, used instead of MLflow."""

    host: str = "127.0.0.1"
    port: int = _number(8000, 0, 65_535)
    mlflow_uri: str = "http://127.0.0.1:5000"
    release: str = ""
    cache: Path = Path(".vitrine/serving/cache")
    cache_bytes: int = _number(20 * 2**30, 0)
    """Limit of fetched files and encoders on disk; evicted by LRU, except those of versions that an alias names."""
    poll_s: float = _number(2.0, 0.01, DAY_S)
    role: str = "all"
    """all: holds whole versions and answers; shard: holds some shards for gateways; gateway: answers from shard processes."""
    shards: tuple[str, ...] = ()
    """Role shard: the shards to hold, such as 0,2."""
    shard_urls: tuple[str, ...] = ()
    """Role gateway: URLs of shard processes; a name that resolves to several addresses stands for all of them."""
    shard_map: str = ""
    """Role gateway, instead of `shard_urls`: a file with one URL a line, read again every two seconds."""
    shard_timeout_s: float = _number(1.0, 0.01, DAY_S)
    """A gateway's timeout per shard; the answer then leaves the shard out."""
    shard_patience_s: float = _number(10.0, 0, DAY_S)
    """How long a starting gateway waits for missing shards before it serves without them."""
    hedges: float = _number(0.05, 0, 1)
    """Hedging budget: the share of shard requests that a gateway may send to a second process. 0: none."""
    probe_s: float = _number(0.5, 0.01, DAY_S)
    """Interval at which a gateway probes every shard process."""
    threads: int = _number(1, 1)
    encoder_runtime: str = "onnxruntime"
    """Runtime of the photo encoder: onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt or openvino (docs/encoders.md)."""
    workers: int = _number(2, 1)
    """Concurrent searches; up to `queue` more wait, and any beyond are answered 503.
    The defaults of a gateway, whose workers mostly wait for shards, are 16 and a queue of 176."""
    queue: int = _number(78, 0)
    deadline_s: float = _number(5.0, 0.01, DAY_S)
    """Deadline of a request, from its whole body to the answer; past it the answer is 504 and no further phase starts."""
    connections: int = _number(1000, 1)
    """Most open connections; further ones are closed. The system's limit of open files has to allow them."""
    head_s: float = _number(20.0, 0.01, DAY_S)
    """Timeout of the first request head on a connection, which is then closed."""
    head_bytes: int = _number(32_768, 1024)
    """Most bytes of a request line and headers; more is answered 431. nginx's default is four buffers of 8 KiB."""
    body_s: float = _number(20.0, 0.01, DAY_S)
    """Timeout of a request body, answered 408."""
    uploads: int = _number(128, 1)
    """Most bodies being received at once; further ones are answered 503."""
    image_root: str = ""
    """Root folder of product pictures. Empty: the snapshot's own root, where it is a local folder."""
    admin_token: str = ""
    """Bearer token of the admin routes. Empty: those routes are closed."""
    webhook_secret: str = ""
    """HMAC secret of MLflow's alias webhooks (`vitrine webhook --replica`). Empty: none is accepted."""
    api_keys: str = ""
    """A JSON file of API keys as their sha256 (docs/serving.md). Empty: no key is needed."""
    query_hosts: tuple[str, ...] = ()
    """Hosts allowed in `image_url`, separated by commas. Empty: no photo is fetched by URL."""
    cache_url: str = ""
    """redis:// URL of the caches that replicas share. Empty: each replica has its own, in memory."""
    profiles_url: str = ""
    """redis:// URL of the feature store of user profiles. Empty: only the request's own `user` counts."""
    otel_endpoint: str = ""
    """OTLP/HTTP endpoint of traces, such as http://127.0.0.1:4318/v1/traces. Empty: no tracing."""
    sample_rate: float = _number(0.05, 0, 1)
    """Share of searches sampled, as vectors and sha256 of photos, for promotions to replay. 0: none."""
    sample_kept: int = _number(500, 0)
    """Number of samples kept, the newest."""
    sample_photos: bool = False
    """Whether sampled photos are kept as well (64 MiB at most): only then can another encoder replay them."""
    log: str = "json"
    """Log format: json (one object a line) or text."""
    notice: str = ""
    """A notice on the search page, such as that the data is generated."""
    max_image_bytes: int = _number(10 * 2**20, 1)
    max_image_pixels: int = _number(50_000_000, 1)
    max_whole_pixels: int = _number(25_000_000, 1)
    """Limit for images other than RGB or grey JPEGs, which cannot be decoded at a reduced size: about a second at this limit."""

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> "ServingSettings":
        """Reads settings from the environment. Raises ValueError naming the variable that does not parse or is out of bounds."""
        values: dict[str, Any] = {}
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
                raise ValueError(f"{given} is not a {kind.__name__}") from None
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
