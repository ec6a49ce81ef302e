"""Parent of the next delta version, and other versions whose changes it must carry over.

Versions form a graph like commits: a delta names its parent, and the versions whose changes it carried over. Whatever two makers
of versions do at once, and whatever a rebuild leaves behind, what is not covered by the parent is carried into the next version.
"""

from collections.abc import Mapping, Sequence

from tasks.registry import Version
from tasks.release.gates.recorded_verdict import verdict

PARENT, CARRIED, CHANGES = "parent", "carried", "changes"
"""Tags: the version built on; versions whose changes were taken over (separated by commas); how many changes it acknowledged."""


def parent_version(versions: Sequence[Version], aliases: Mapping[str, str]) -> Version | None:
    """The candidate if it passed and awaits promotion, else the live version; None without either.

    A candidate that was live and was left again (a rollback made it `previous`) is not built on.
    """
    named = {alias: next((v for v in versions if v.version == number), None) for alias, number in aliases.items()}
    candidate, live = named.get("candidate"), named.get("live")
    if candidate is None or verdict(candidate, None) == "failed":
        return live
    if live is None:
        return candidate
    return candidate if int(candidate.version) > int(live.version) and candidate != named.get("previous") else live


def covered_versions(version: str, versions: Sequence[Version]) -> set[str]:
    """Numbers of the versions whose changes a version contains: itself, its ancestors, and what these carried over."""
    known = {v.version: v for v in versions}
    found: set[str] = set()
    waiting = [version]
    while waiting:
        number = waiting.pop()
        if number in found:
            continue
        found.add(number)
        tags = known[number].tags if number in known else {}
        waiting += [n for n in (tags.get(PARENT, ""), *tags.get(CARRIED, "").split(",")) if n]
    return found


def uncovered_versions(parent: str, versions: Sequence[Version]) -> list[Version]:
    """Versions with acknowledged changes that the parent lacks, newest first; those covered by another are left out."""
    held = covered_versions(parent, versions)
    missing = sorted((v for v in versions if v.tags.get(CHANGES) and v.version not in held), key=lambda v: -int(v.version))
    heads: list[Version] = []
    seen: set[str] = set()
    for version in missing:
        if version.version not in seen:
            heads.append(version)
            seen |= covered_versions(version.version, versions)
    return heads
