"""The candidate: which index version is proposed next, and what becomes of one that was proposed before and never went live.

The registry says what is proposed, not the event that starts a promotion: Airflow drops asset events of a paused DAG, and hands a
run only the first of several that came while another run was active (airflow#56050).
"""

import logging
from typing import Protocol

from tasks.registry import INDEX_MODEL, Version
from tasks.release.promotion.blue_green import LIVE_AT

log = logging.getLogger(__name__)

CANDIDATE = "candidate"
SUPERSEDED = "superseded"
"""The tag of a version that a newer candidate replaced before it was live; its value says which."""


class Candidates(Protocol):
    """The registry operations of a proposal."""

    def alias(self, model: str, alias: str) -> Version | None: ...
    def set_alias(self, model: str, alias: str, version: str) -> None: ...
    def tag_version(self, model: str, version: str, tag: str, value: str) -> None: ...
    def delete_version_tag(self, model: str, version: str, tag: str) -> None: ...


def propose(registry: Candidates, version: str) -> str:
    """Makes the version the candidate; marks the one before as superseded unless it was live, and gives its number ("" for none).

    Idempotent: the mark is written first, so a killed call is completed by the next one.
    """
    before = registry.alias(INDEX_MODEL, CANDIDATE)
    replaced = before.version if before and before.version != version and not _was_live(before) else ""
    if replaced:
        registry.tag_version(INDEX_MODEL, replaced, SUPERSEDED, f"by version {version}, before it was live")
        log.info("version %s is superseded by version %s before it was live", replaced, version)
    registry.set_alias(INDEX_MODEL, CANDIDATE, version)
    return replaced


def withdraw_mark(registry: Candidates, found: Version) -> None:
    """Deletes the mark of a version that goes live after all, because a person chose it or had said yes already."""
    if SUPERSEDED in found.tags:
        registry.delete_version_tag(INDEX_MODEL, found.version, SUPERSEDED)


def superseded(version: Version) -> str:
    """By what a version was superseded, as a half sentence; "" when it was not, or has been live since."""
    return "" if _was_live(version) else version.tags.get(SUPERSEDED, "")


def newer_candidate(registry: Candidates, version: str) -> str:
    """The candidate that replaced this one meanwhile; "" while the version is proposed itself."""
    now = registry.alias(INDEX_MODEL, CANDIDATE)
    return now.version if now is not None and now.version != version else ""


def _was_live(version: Version) -> bool:
    return LIVE_AT in version.tags or "live" in version.aliases
