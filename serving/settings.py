"""What a replica is told from outside: VITRINE_ variables, typed, with defaults that work on one machine."""

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
    """A number that has to lie within these bounds, both included."""
    return field(default=default, metadata={"bounds": (least, most)})


@dataclass(frozen=True)
class ServingSettings:
    """A replica's settings. `release`: a folder written by `vitrine release export`, instead of MLflow."""

    host: str = "127.0.0.1"
    port: int = _number(8000, 0, 65_535)
    mlflow_uri: str = "http://127.0.0.1:5000"
    release: str = ""
    cache: Path = Path(".vitrine/serving/cache")
    cache_bytes: int = _number(20 * 2**30, 0)
    """What fetched files and encoders may take on disk; the least recently used go first, never those of versions that aliases name."""
    poll_s: float = _number(2.0, 0.01, DAY_S)
    role: str = "all"
    """all: holds whole versions and answers; shard: holds some shards for gateways; gateway: answers, and asks shards."""
    shards: tuple[str, ...] = ()
    """The shards that a process of the role shard holds, such as 0,2."""
    shard_urls: tuple[str, ...] = ()
    """Where a gateway finds shard processes; a name that resolves to several addresses stands for all of them."""
    shard_map: str = ""
    """Instead of `shard_urls`: a file with one address on each line, read again every two seconds."""
    shard_timeout_s: float = _number(1.0, 0.01, DAY_S)
    """What a gateway gives a shard at most; an answer then comes without it."""
    shard_patience_s: float = _number(10.0, 0, DAY_S)
    """How long a gateway that serves nothing yet waits for shards that are missing before it serves without them."""
    hedges: float = _number(0.05, 0, 1)
    """The share of questions to shards that a gateway may ask a second process when the first is late. 0: none."""
    probe_s: float = _number(0.5, 0.01, DAY_S)
    """How often a gateway asks every shard process what it holds."""
    threads: int = _number(1, 1)
    encoder_runtime: str = "onnxruntime"
    """What runs the photos' encoder: onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt or openvino (docs/encoders.md)."""
    workers: int = _number(2, 1)
    """Searches that are worked on at once; more wait, up to `queue`, and beyond that are answered 503.
    A gateway, whose workers mostly wait for shards, has 16 and a queue of 176 where nothing is set."""
    queue: int = _number(78, 0)
    deadline_s: float = _number(5.0, 0.01, DAY_S)
    """From the whole body to the answer; what takes longer is answered 504, and no further phase of it begins."""
    connections: int = _number(1000, 1)
    """Connections that may be open at once; what comes beyond is closed. The system's limit of open files has to allow them."""
    head_s: float = _number(20.0, 0.01, DAY_S)
    """A new connection that has not sent the whole head of a request after this long is closed."""
    head_bytes: int = _number(32_768, 1024)
    """Bytes of a request's line and headers; more is answered 431. nginx by default takes four headers of 8 KiB."""
    body_s: float = _number(20.0, 0.01, DAY_S)
    """A body that has not arrived whole after this long is answered 408."""
    uploads: int = _number(128, 1)
    """Bodies that may be on their way in at once; beyond that, 503."""
    image_root: str = ""
    """Folder below which product pictures lie, for showing them. Empty: the snapshot's own root, where it is a local folder."""
    admin_token: str = ""
    """What the admin routes ask for. Empty: those routes are closed."""
    webhook_secret: str = ""
    """What MLflow's messages about moved aliases are signed with (`vitrine webhook --replica`). Empty: none is believed."""
    api_keys: str = ""
    """A JSON file of API keys as their sha256 (docs/serving.md). Empty: everybody may search."""
    query_hosts: tuple[str, ...] = ()
    """Hosts that `image_url` may name, separated by commas. Empty: no photo is fetched by address."""
    cache_url: str = ""
    """redis:// of the caches that replicas share. Empty: each replica remembers for itself."""
    profiles_url: str = ""
    """redis:// of the feature store that knows users. Empty: only what a request says of its user counts."""
    otel_endpoint: str = ""
    """Where traces go, such as http://127.0.0.1:4318/v1/traces. Empty: nowhere."""
    sample_rate: float = _number(0.05, 0, 1)
    """The share of searches that is kept for a while, as vectors and sha256 of photos: promotions replay them. 0: none."""
    sample_kept: int = _number(500, 0)
    """How many of them, the newest."""
    sample_photos: bool = False
    """Whether the photos themselves are kept as well (64 MiB at most): only then can they be asked of another encoder."""
    log: str = "json"
    """json: one object a line; text: for people."""
    notice: str = ""
    """A line the search page shows, such as that the data is generated."""
    max_image_bytes: int = _number(10 * 2**20, 1)
    max_image_pixels: int = _number(50_000_000, 1)
    max_whole_pixels: int = _number(25_000_000, 1)
    """Of all images but JPEGs in RGB or grey: others cannot be decoded at a reduced size, and take about a second at this limit."""

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> "ServingSettings":
        """Settings from the environment; a value that does not parse or is out of bounds is a ValueError naming the variable."""
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
        """The shards to hold. Raises ValueError where that is not a list of numbers."""
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
