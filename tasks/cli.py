"""`vitrine`: the catalogue, searches, index versions and where an answer comes from, on the command line."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serving.contract.files import ContractError
from tasks.errors import VitrineError
from tasks.settings import Settings, masked, read_settings

app = typer.Typer(help="Keeps a shop's visual search fresh, fast and right.", no_args_is_help=True, add_completion=False)
catalog = typer.Typer(help="The catalogue: draw a sample, or load your own.", no_args_is_help=True)
index = typer.Typer(help="Index versions in the registry.", no_args_is_help=True)
release = typer.Typer(help="What is live, and going back.", no_args_is_help=True)
app.add_typer(catalog, name="catalog")
app.add_typer(index, name="index")
app.add_typer(release, name="release")
console = Console(highlight=False, soft_wrap=True)


@app.command()
def search(
    photo: Annotated[Path, typer.Argument(help="a picture file")],
    k: Annotated[int, typer.Option(help="how many products", min=1, max=200)] = 10,
    explain: Annotated[bool, typer.Option("--explain", help="show each term of the scores")] = False,
) -> None:
    """Ask the running replica which products a photo shows."""
    import httpx

    url = Settings.load().serving_urls[0]
    if not photo.is_file():
        raise VitrineError(f"{photo}: there is no such file")
    try:
        fields = {"k": str(k), "explain": str(explain).lower()}
        answer = httpx.post(f"{url}/v1/search", files={"image": photo.read_bytes()}, data=fields, timeout=30, trust_env=False)
    except httpx.HTTPError:
        raise VitrineError(f"no replica answers at {url}; start one with: make up") from None
    body = answer.json()
    if answer.is_error:
        raise VitrineError(body["detail"])
    table = Table(show_edge=False)
    for column in ("", "product", "title", "price", "similarity", "score"):
        table.add_column(column, justify="right" if column in ("", "price", "similarity", "score") else "left")
    for place, row in enumerate(body["results"], 1):
        price = f"{row['price']:.2f} {row['currency']}" if row["price"] is not None else ""
        why = "\n" + ", ".join(f"{n} {v:+.3f}" for n, v in row["reasons"].items()) if explain else ""
        table.add_row(str(place), row["product_id"], row["title"] + why, price, f"{row['similarity']:.3f}", f"{row['score']:.3f}")
    console.print(table)
    version, total = body["version"], body["timings_ms"]["total"]
    console.print(
        f"index version {version['index']}, encoder version {version['encoder']} ({version['tower']}.{version['variant']}), {total} ms"
    )


@catalog.command("sample")
def catalog_sample(
    folder: Annotated[Path, typer.Argument(help="where to draw it")],
    products: Annotated[int, typer.Option(min=1, help="how many products")] = 2000,
    photos: Annotated[int, typer.Option(min=1, help="shopper photos of each")] = 3,
    seed: Annotated[int, typer.Option(help="the same seed draws the same catalogue")] = 7,
) -> None:
    """Draw a sample catalogue (generated test data): products.csv, photos.csv and their pictures."""
    from tasks.catalog.sample import SampleConfig, draw_sample

    with console.status(f"drawing {products} products"):
        made = draw_sample(SampleConfig(products, photos, seed), folder)
    console.print(f"{made.products} products and {made.photos} photos, drawn by code as test data, in {made.folder}")


@catalog.command("load")
def catalog_load(
    folder: Annotated[Path, typer.Argument(help="a folder with products.csv or .parquet, and optionally photos.csv")],
    database: Annotated[str, typer.Option(help="sqlite:///file or postgresql://…; default: the setting VITRINE_CATALOG")] = "",
) -> None:
    """Load a catalogue folder into a database, replacing what is there."""
    from tasks.catalog.load import load_folder

    uri = database or Settings.load().catalog_uri
    counts = load_folder(folder, uri)
    console.print(f"{counts['products']} products and {counts['photos']} photos in {uri}")


@index.command("list")
def index_list() -> None:
    """Every index version: its aliases, encoder, products and verdict."""
    from tasks.registry import INDEX_MODEL

    table = Table(show_edge=False)
    for column in ("version", "aliases", "encoder", "products", "gates", "made from"):
        table.add_column(column)
    for found in _registry().versions(INDEX_MODEL):
        tags = found.tags
        table.add_row(
            found.version, ", ".join(found.aliases), tags.get("encoder_version", ""), tags.get("products", ""),
            tags.get("verdict", ""), tags.get("snapshot", ""),
        )  # fmt: skip
    console.print(table)


@release.command("show")
def release_show() -> None:
    """What every replica serves and holds."""
    from tasks.steps.promoting import replicas_of

    for replica in replicas_of(Settings.load()):
        state = replica.version()
        live = f"version {state['live']['version']} ({state['live']['slot']})" if state["live"] else "nothing"
        slots = ", ".join(f"{n}: {s['version'] or '-'} {s['state']} {s['reason']}".strip() for n, s in state["slots"].items())
        console.print(f"{replica.url}  live: {live}; {slots}")


@release.command("export")
def release_export(
    folder: Annotated[Path, typer.Argument(help="where to write it; a replica serves it with VITRINE_RELEASE=<folder>")],
    version: Annotated[str, typer.Option(help="an index version; default: live")] = "",
) -> None:
    """Write an index version with everything it needs into a folder that a replica can serve without MLflow."""
    from tasks.release.export import export_release

    made = export_release(_registry(), folder, version)
    console.print(f"index version {made} in {folder}; serve it with VITRINE_RELEASE={folder} vitrine-serve")


@release.command("rollback")
def release_rollback() -> None:
    """Go back to the version that was live before."""
    from tasks.release.promotion import rollback
    from tasks.steps.promoting import LIMIT_S, replicas_of

    chosen = Settings.load()
    plan, took = rollback(_registry(), replicas_of(chosen), LIMIT_S)
    console.print(f"version {plan.version} is live again in {plan.slot} (was: version {plan.live}), after {took:.1f} s")


@app.command()
def trace(product_id: str, version: Annotated[str, typer.Option(help="an index version; default: live")] = "") -> None:
    """Where an answer comes from: picture, embedding part, shard segment, index version, encoder version."""
    from tasks.release.trace import trace_product

    for step, value in trace_product(_registry(), product_id, version):
        console.print(f"{step:<16} {value}")


@app.command()
def settings() -> None:
    """Every setting, its value and where it came from; secrets masked."""
    table = Table(show_edge=False)
    for column in ("setting", "value", "from"):
        table.add_column(column)
    for name, (value, source) in read_settings().items():
        table.add_row(f"VITRINE_{name.upper()}", masked(name, value), source)
    console.print(table)


def _registry() -> Any:
    from tasks.registry import Registry

    chosen = Settings.load()
    return Registry(chosen.mlflow_uri, chosen.home / "cache")


def main() -> None:
    """Runs the command; what a person must mend is one sentence, not a traceback."""
    import warnings

    warnings.simplefilter("ignore")
    try:
        app()
    except (VitrineError, ContractError) as error:
        console.print(f"[bold red]vitrine:[/] {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
