"""`vitrine search`: search a running replica with one photo."""

import json
from pathlib import Path
from typing import Annotated

import typer

from serving.contract.addresses import error_line
from tasks.cli.output import AsJson, console, print_json, print_table
from tasks.errors import SettingsError, VitrineError
from tasks.settings import Settings


def search(
    photo: Annotated[Path, typer.Argument(help="an image file")],
    k: Annotated[int, typer.Option(help="number of products", min=1, max=200)] = 10,
    box: Annotated[
        str, typer.Option(help="search for what lies in this part only: x,y,width,height in shares of the photo")
    ] = "",
    explain: Annotated[bool, typer.Option("--explain", help="show the terms of each score")] = False,
    as_json: AsJson = False,
) -> None:
    """Search the running replica for the products in a photo."""
    import httpx

    from tasks.release.promotion.serving_replicas import token_error

    chosen = Settings.load()
    url = next(iter(chosen.serving_urls), "")
    if not url:
        raise SettingsError("VITRINE_SERVING_URLS names no replica that could be asked")
    if not photo.is_file():
        raise VitrineError(f"{photo}: there is no such file")
    try:
        fields = {"k": str(k), "explain": str(explain).lower()} | ({"box": _box(box)} if box else {})
        headers = {"Authorization": f"Bearer {chosen.admin_token}"} if chosen.admin_token else {}  # where API keys are asked for
        files = {"image": photo.read_bytes()}
        answer = httpx.post(f"{url}/v1/search", files=files, data=fields, headers=headers, timeout=30, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise VitrineError(f"no replica answers at {url} ({error_line(error, 160)}); start one with: make up") from None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise SettingsError(token_error(url, chosen.admin_token))
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or not (answer.is_error or "results" in body):
        raise VitrineError(f"what answers at {url} is no replica: status {answer.status_code}, no answer of a search")
    if answer.is_error:
        raise VitrineError(str(body.get("detail") or f"{url} answers {answer.status_code}"))
    if as_json:
        print_json(body)
        return
    rows = []
    for place, row in enumerate(body["results"], 1):
        price = f"{row['price']:.2f} {row['currency']}" if row["price"] is not None else ""
        why = "\n" + ", ".join(f"{n} {v:+.3f}" for n, v in row["reasons"].items()) if explain else ""
        rows.append((str(place), row["product_id"], row["title"] + why, price, f"{row['similarity']:.3f}", f"{row['score']:.3f}"))
    print_table(("", "product", "title", "price", "similarity", "score"), rows, right=("", "price", "similarity", "score"))
    version, total = body["version"], body["timings_ms"]["total"]
    console.print(
        f"index version {version['index']}, encoder version {version['encoder']} ({version['tower']}.{version['variant']}), {total} ms"
    )


def _box(text: str) -> str:
    """The box as the API takes it. Raises VitrineError where these are not four numbers."""
    numbers = text.split(",")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if len(values) != 4:
        raise VitrineError(f"--box {text}: give four numbers from 0 to 1, x,y,width,height, such as 0.25,0.1,0.5,0.6")
    return json.dumps(dict(zip(("x", "y", "width", "height"), values, strict=True)))
