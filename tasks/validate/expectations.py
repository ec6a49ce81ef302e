"""Runs Great Expectations over data frames: one checkpoint, data docs as HTML, and one sentence per failure."""

import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

log = logging.getLogger(__name__)

SHOWN_IDS = 5


@dataclass(frozen=True)
class Check:
    """One expectation by GX class name with its arguments, on the frame named `frame`.

    `words` say in plain words what its column holds, and `setting` is the environment variable that moves its limit. `failure` is
    the whole sentence where it fails; without it one is made of these.
    """

    frame: str
    expectation: str
    arguments: dict[str, Any]
    setting: str = ""
    failure: str = ""
    words: str = ""


@dataclass(frozen=True)
class Validation:
    """The outcome: number of expectations checked, one sentence per failure, and the data docs."""

    name: str
    checked: int
    failures: tuple[str, ...]
    docs: Path
    page: str
    """The page of `docs` to look at first: the first that failed, else the first."""
    also: tuple[str, ...] = ()
    """What a person wants to know besides, such as the ids of what is missing."""

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if self.passed:
            return "; ".join([f"{self.name}: {self.checked} expectations hold", *self.also])
        return f"{self.name}: {'; '.join([*self.failures, *self.also])}"


def run_checks(
    name: str, frames: dict[str, pd.DataFrame], checks: Sequence[Check], docs: Path, id_column: str = "", also: Sequence[str] = ()
) -> Validation:
    """Runs the checks and writes data docs to `docs`, replacing it. Failed checks do not raise: they are in the result."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("great_expectations").setLevel(logging.WARNING)  # its import alone logs two hundred lines at INFO
        import great_expectations as gx
        import great_expectations.expectations as gxe

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}  # type: ignore[assignment, unused-ignore]
        shutil.rmtree(docs, ignore_errors=True)
        docs.mkdir(parents=True)
        site = {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())},
        }
        for known in list(context.get_site_names()):
            context.delete_data_docs_site(known)
        context.add_data_docs_site("vitrine", site)  # type: ignore[arg-type, unused-ignore]
        source = context.data_sources.add_pandas(name)
        failures: list[str] = []
        failed: list[str] = []
        checked = 0
        for frame, data in frames.items():
            chosen = [c for c in checks if c.frame == frame]
            wanted = [getattr(gxe, c.expectation)(**c.arguments) for c in chosen]
            suite = context.suites.add(gx.ExpectationSuite(name=f"{name} {frame}", expectations=wanted))
            batch = source.add_dataframe_asset(frame).add_batch_definition_whole_dataframe("whole")
            definition = context.validation_definitions.add(
                gx.ValidationDefinition(name=f"{name} {frame}", data=batch, suite=suite)
            )
            has_ids = id_column and id_column in data.columns
            extra = {"unexpected_index_column_names": [id_column]} if has_ids else {}
            form: Any = {"result_format": "COMPLETE" if has_ids else "SUMMARY", **extra}
            result = definition.run(batch_parameters={"dataframe": data}, result_format=form)
            _keep(context, result)
            checked += len(result.results)
            failures += [_sentence(r, id_column, chosen) for r in result.results if not r.success]
            failed += [] if result.success else [suite.name]
        context.build_data_docs()
    first = (failed or [f"{name} {next(iter(frames))}"])[0]
    page = next((p for p in sorted(docs.glob("validations/**/*.html")) if first in p.parts), docs / "index.html")
    return Validation(name, checked, tuple(failures), docs, str(page.relative_to(docs)), tuple(also))


def _keep(context: Any, result: Any) -> None:
    """Adds a result to the data docs."""
    from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier, ValidationResultIdentifier

    identifier = ValidationResultIdentifier(
        expectation_suite_identifier=ExpectationSuiteIdentifier(name=result.suite_name),
        run_id=result.meta["run_id"],
        batch_identifier=result.batch_id or "whole",
    )
    context.validation_results_store.set(identifier, result)


def _sentence(result: Any, id_column: str, checks: Sequence[Check]) -> str:
    config = result.expectation_config
    check = next((c for c in checks if _is_of(config, c)), Check("", "", {}))
    if check.failure:
        return check.failure + (f": {check.setting}" if check.setting else "")
    found = result.result
    if result.exception_info and "exception_message" in str(result.exception_info) and not found:
        return f"{config.type}: could not be checked: {result.exception_info}"
    ids = [
        str(i[id_column])
        for i in (found.get("unexpected_index_list") or [])[:SHOWN_IDS]
        if isinstance(i, dict) and id_column in i
    ]
    named = f" (products {', '.join(ids)})" if ids else ""
    setting = f" [setting: {check.setting}]" if check.setting else ""
    return f"{_problem(config, found, check)}{named}{setting}"


def _problem(config: Any, found: dict[str, Any], check: Check) -> str:
    """What is wrong, with what was found and what is allowed."""
    values, count = (found.get("partial_unexpected_list") or [])[:3], found.get("unexpected_count")
    if "column_A" in config.kwargs:
        columns = config.kwargs["column_A"], config.kwargs["column_B"]
        pair = values[0] if values else ("unknown", "unknown")
        return f"{columns[0]} is {pair[0]} and {columns[1]} is {pair[1]}, but they must be equal"
    column = config.kwargs.get("column", "")
    what = f"{check.words} ({column})" if check.words else column
    if check.expectation == "ExpectColumnValuesToNotBeNull":
        return f"{what} is empty in {count} rows"
    shown = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
    if check.expectation == "ExpectColumnValuesToBeUnique":
        return f"{what} must be unique, but these occur more than once: {shown}"
    allowed = _allowed(config.kwargs.get("min_value"), config.kwargs.get("max_value"))
    return f"{what} is {shown}, {allowed}" if count == 1 else f"{what} is out of range in {count} rows: {shown}, {allowed}"


def _allowed(least: float | None, most: float | None) -> str:
    if least is None or most is None:
        return f"at most {most:g} is allowed" if least is None else f"at least {least:g} is required"
    return f"{least:g} is required" if least == most else f"{least:g} to {most:g} is allowed"


def _is_of(config: Any, check: Check) -> bool:
    """Whether a result's configuration belongs to this check, by class name and arguments."""
    kind = "".join(f"_{c.lower()}" if c.isupper() else c for c in check.expectation).lstrip("_")
    return config.type == kind and all(config.kwargs.get(name) == value for name, value in check.arguments.items())
