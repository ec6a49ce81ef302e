"""`vitrine catalog`: generate a sample catalogue, or load your own."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.output import AsJson, print_answer, progress
from tasks.settings import Settings

app = typer.Typer(help="The catalogue: generate a sample, or load your own.", no_args_is_help=True)


@app.command("sample")
def sample(
    folder: Annotated[Path, typer.Argument(help="target folder")],
    products: Annotated[int, typer.Option(min=1, help="how many products")] = 2000,
    photos: Annotated[int, typer.Option(min=1, help="shopper photos of each")] = 3,
    pictures: Annotated[int, typer.Option(min=1, help="most pictures of each; a product has 1 to so many")] = 1,
    seed: Annotated[int, typer.Option(help="equal seeds give equal catalogues")] = 7,
    as_json: AsJson = False,
) -> None:
    """Generate a sample catalogue (test data): products.csv, photos.csv and pictures."""
    from tasks.catalog.sample.catalog import SampleConfig, draw_sample

    with progress.status(f"generating {products} products"):
        made = draw_sample(SampleConfig(products, photos, seed, pictures), folder)
    print_answer(made, f"{made.products} products and {made.photos} photos, generated test data, in {made.folder}", as_json)


@app.command("load")
def load(
    folder: Annotated[
        Path, typer.Argument(help="a folder with products.csv or .parquet, and optionally images.csv and photos.csv")
    ],
    database: Annotated[str, typer.Option(help="sqlite:///file or postgresql://…; default: the setting VITRINE_CATALOG")] = "",
    as_json: AsJson = False,
) -> None:
    """Load a catalogue folder into a database, replacing its content."""
    from serving.contract.addresses import without_secrets
    from tasks.catalog.load import load_folder
    from tasks.catalog.sources.settings import source_options
    from tasks.validate.preconditions import shorten

    chosen = Settings.load()
    uri = database or chosen.catalog_uri
    loaded = load_folder(folder, uri, source_options(chosen))
    shown = without_secrets(uri)
    lines = [f"left out: {sentence}" for sentence in shorten(loaded.unusable)]
    lines.append(f"{loaded.products} products and {loaded.photos} photos in {shown}")
    print_answer(asdict(loaded) | {"database": shown}, "\n".join(lines), as_json)


@app.command("check")
def check(
    catalogue: Annotated[str, typer.Argument(help="its address; default: the setting VITRINE_CATALOG")] = "",
    rows: Annotated[int, typer.Option(min=1, help="products that are looked at")] = 20_000,
    pictures: Annotated[int, typer.Option(min=0, help="pictures that are fetched")] = 50,
    as_json: AsJson = False,
) -> None:
    """Say what would become of a catalogue: each column, rows set aside with reasons, pictures; changes nothing."""
    from tasks.catalog.check import check_catalog
    from tasks.cli.catalog_check import print_check
    from tasks.masking import mask

    chosen = Settings.load()
    chosen = replace(chosen, catalog=catalogue) if catalogue else chosen
    with progress.status("looking at the catalogue"):
        found = check_catalog(chosen, mask("catalog", chosen.catalog_uri), rows, pictures)
    print_check(found, as_json)
    raise typer.Exit(0 if found.ok else 1)
