"""`vitrine capacity`: sizes a cluster for a load."""

import time
from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.output import AsJson, console, print_json, print_table, progress

PHOTOS = 220
PHASES = ("encode", "retrieve", "rank", "rest")


def capacity(
    qps: Annotated[float, typer.Option(min=1, help="queries per second to carry")] = 10_000,
    p99_ms: Annotated[float, typer.Option(min=1, help="99th percentile of latency to meet")] = 200,
    products: Annotated[int, typer.Option(min=1, help="products in the catalogue")] = 10_000_000,
    encoder_cores: Annotated[int, typer.Option(min=1, help="cores of a gateway pod")] = 4,
    index_cores: Annotated[int, typer.Option(min=1, help="cores of a shard pod")] = 4,
    network_ms: Annotated[float, typer.Option(min=0, help="one way between a gateway and a shard")] = 0.5,
    url: Annotated[
        str, typer.Option(help="an idle replica of role all to measure; default: the first of VITRINE_SERVING_URLS")
    ] = "",
    times: Annotated[Path | None, typer.Option(help="read service times from this file instead of measuring")] = None,
    save: Annotated[Path | None, typer.Option(help="write the measured service times to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the gateway and shard pods needed for a load, by a queueing simulation over measured service times."""
    from tasks.capacity.service_times import measure_times, read_times, synthetic_photos, write_times
    from tasks.capacity.simulation import LoadTarget, plans
    from tasks.settings import Settings

    if times is None:
        replica = url or next(iter(Settings.load().serving_urls), "")
        progress.print(f"measuring {PHOTOS} photos, one at a time, on {replica}")
        measured = measure_times(replica, synthetic_photos(PHOTOS, seed=time.time_ns() % 2**32))
    else:
        measured = read_times(times)
    if save is not None:
        write_times(save, measured)
    wanted = LoadTarget(qps, p99_ms, products, encoder_cores, index_cores, network_ms)
    found = plans(measured, wanted)
    if as_json:
        measured_ms = {n: {"mean": getattr(measured, n).mean(), "p99": _p99(getattr(measured, n))} for n in PHASES}
        print_json({"load": wanted, "measured_ms": measured_ms, "plans": found})
        return
    console.print("measured, ms (mean / p99):")
    for name in PHASES:
        values = getattr(measured, name)
        console.print(f"  {name:9} {values.mean():6.2f} / {_p99(values):6.2f}")
    console.print(f"pods at {qps:,.0f} queries/s, {products:,} products:")
    columns = ("load", "gateways", "shard pods", "p50 ms", "p99 ms", "gateways busy", "shards busy")
    rows = [
        (
            f"{p.load:.0%}", str(p.encoders), f"{p.shards} x {p.replicas} = {p.index_pods}", f"{p.p50_ms:.1f}", f"{p.p99_ms:.1f}",
            f"{p.encoder_load:.0%}", f"{p.index_load:.0%}",
        )
        for p in found
    ]  # fmt: skip
    print_table(columns, rows, right=columns)
    last = found[-1]
    console.print(
        f"[bold]{last.encoders} gateway pods of {encoder_cores} cores and {last.index_pods} shard pods of {index_cores} cores[/]"
        f" ({last.shards} shards, {last.replicas} of each) keep the p99 at {last.p99_ms:.0f} ms (asked for {p99_ms:g} ms)"
    )
    console.print(ASSUMED.format(products=measured.products, count=len(measured.encode)))


ASSUMED = """assumed:
  queries arrive at random (Poisson); every one is a photo, and no cache answers
  a core does one query's phase at a time in the time measured on a quiet replica ({count} photos); cores do not slow each other down
  a shard holds {products:,} products, as many as the replica that was measured, with as many pictures each, and takes as long
  a query waits for the slowest shard
  gateways and replicas are balanced by the power of two choices; no hedges, no failures: add pods for what may fail at once
  a process's Python (rank, HTTP) is one thread: a gateway pod is one process, and its Python is at most 70 % busy"""


def _p99(values: object) -> float:
    import numpy as np

    return float(np.percentile(values, 99))  # type: ignore[call-overload]
