"""`vitrine catalog`: generate a sample catalogue, or load your own."""

from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.output import console
from tasks.settings import Settings

app = typer.Typer(help="The catalogue: generate a sample, or load your own.", no_args_is_help=True)


@app.command("sample")
def sample(
    folder: Annotated[Path, typer.Argument(help="target folder")],
    products: Annotated[int, typer.Option(min=1, help="how many products")] = 2000,
    photos: Annotated[int, typer.Option(min=1, help="shopper photos of each")] = 3,
    seed: Annotated[int, typer.Option(help="equal seeds give equal catalogues")] = 7,
) -> None:
    """Generate a sample catalogue (test data): products.csv, photos.csv and pictures."""
    from tasks.catalog.sample.catalog import SampleConfig, draw_sample

    with console.status(f"generating {products} products"):
        made = draw_sample(SampleConfig(products, photos, seed), folder)
    console.print(f"{made.products} products and {made.photos} photos, generated test data, in {made.folder}")


@app.command("load")
def load(
    folder: Annotated[Path, typer.Argument(help="a folder with products.csv or .parquet, and optionally photos.csv")],
    database: Annotated[str, typer.Option(help="sqlite:///file or postgresql://…; default: the setting VITRINE_CATALOG")] = "",
) -> None:
    """Load a catalogue folder into a database, replacing its content."""
    from serving.contract.addresses import without_secrets
    from tasks.catalog.load import load_folder
    from tasks.catalog.sources.settings import source_options
    from tasks.validate.preconditions import shorten

    chosen = Settings.load()
    uri = database or chosen.catalog_uri
    loaded = load_folder(folder, uri, source_options(chosen))
    for sentence in shorten(loaded.unusable):
        console.print(f"left out: {sentence}", markup=False)
    console.print(f"{loaded.products} products and {loaded.photos} photos in {without_secrets(uri)}")
