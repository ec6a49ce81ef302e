"""Prints what `vitrine catalog check` found."""

from dataclasses import asdict

from tasks.catalog.check import CatalogCheck, Reason
from tasks.cli.output import console, print_json, print_table


def print_check(found: CatalogCheck, as_json: bool) -> None:
    """As JSON, or for people: columns, rows that would be set aside, pictures, and a verdict last."""
    if as_json:
        print_json(asdict(found) | {"ok": found.ok})
        return
    say(found.catalogue)
    if found.rows:
        say(f"{'all' if found.whole else 'the first'} {found.rows} products were looked at\n")
    if found.columns:
        _columns(found)
    if found.pictures is not None:
        _rows(found)
        _pictures(found)
    if found.ok:
        say("this catalogue can be used as it is")
        return
    say("to be mended:")
    for sentence in found.wrong:
        say(f"  - {sentence}")


def _columns(found: CatalogCheck) -> None:
    there = [use for use in found.columns if not use.missing]
    print_table(
        ("column", "type", "taken as", "how"),
        [(use.column or "-", use.type or "-", use.taken_as or "left out", use.why) for use in there],
    )
    needed = [use.taken_as for use in found.columns if use.needed]
    say("")
    if needed:
        say(f"missing, and needed: {', '.join(needed)}")
    others = [f"{use.taken_as} ({use.why.rpartition(': ')[2]})" for use in found.columns if use.missing and not use.needed]
    if others:
        say(f"missing, and then the same for every product: {', '.join(others)}")
    say("")


def _rows(found: CatalogCheck) -> None:
    say(f"rows: {found.rows - found.set_aside} of {found.rows} can be used" + ("" if not found.set_aside else "; set aside:"))
    _reasons(found.reasons)
    if found.title_only:
        what = "are found by words alone" if found.text_only else "are set aside; with VITRINE_TEXT_ONLY=true words find them"
        say(f"products without any picture: {found.title_only}; they {what}")


def _pictures(found: CatalogCheck) -> None:
    looked = found.pictures
    assert looked is not None
    if looked.most > 1:
        say(f"pictures of a product: {looked.least} to {looked.most}, {looked.total} in all")
    if looked.left_out:
        say(f"pictures left out: {looked.left_out} (VITRINE_MAX_PICTURES, VITRINE_MAX_URI_LENGTH)")
    say(f"pictures: {looked.reached} of {looked.tried} that were tried can be reached")
    _reasons(looked.reasons)
    if found.labelled_photos is None:
        say("labelled photos: none; views made from the pictures stand in for them (synthetic queries)\n")
    else:
        say("labelled photos: there are some\n")


def _reasons(reasons: list[Reason]) -> None:
    for reason in reasons:
        products = f" (product {', '.join(reason.products)}{', …' if reason.count > len(reason.products) else ''})"
        column = f"{reason.column}: " if reason.column else ""
        say(f"  {reason.count} x {column}{reason.problem}{products if reason.products else ''}")


def say(sentence: str) -> None:
    """Prints a sentence, wrapped at the width of the terminal."""
    console.print(sentence, markup=False, soft_wrap=False)
