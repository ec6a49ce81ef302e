"""Several searches carried through their phases side by side: what costs less for several at once is done for all of them at once.

A search is a generator (serving/queries.py): it yields a `Step` where it needs vectors or candidates, and is sent them.
"""

from asyncio import Future
from collections.abc import Generator, Hashable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving import logs
from serving.models import SearchAnswer


class Step(Protocol):
    """What a search asks for. Steps that are `alike` are done by one call."""

    @property
    def alike(self) -> Hashable: ...

    def run(self, steps: list[Any]) -> list[Any]:
        """The results of these steps, of which this is the first, in their order."""
        ...


Searching = Generator[Step, Any, SearchAnswer]


@dataclass
class Search:
    """A search under way, the context it runs in and who waits for it. At its end `answer` or `error` is there."""

    steps: Searching
    context: Context
    future: Future[SearchAnswer]
    answer: SearchAnswer | None = None
    error: Exception | None = None
    wants: Step | None = field(default=None, repr=False)

    def go_on(self, result: Any = None) -> None:
        """Runs to the next step, or to the end; an exception as the `result` is raised where the search waits for it."""
        self.wants = None
        try:
            if isinstance(result, Exception):
                self.wants = self.context.run(self.steps.throw, result)
            else:
                self.wants = self.context.run(self.steps.send, result)
        except StopIteration as end:
            self.answer = end.value
        except Exception as error:  # whatever it is, it is this search's alone; whoever asked raises it
            self.error = error


def together(searches: list[Search]) -> None:
    """Carries all searches to their ends. One that fails does not disturb the others."""
    for search in searches:
        search.go_on()
    while under_way := [s for s in searches if s.wants is not None]:
        first = under_way[0].wants
        assert first is not None
        kind = first.alike
        chosen = [s for s in under_way if s.wants is not None and s.wants.alike == kind]
        try:
            results = _context_of(chosen).run(first.run, [s.wants for s in chosen])
        except Exception as error:  # each of them gets it, and says so in its own words
            results = [error] * len(chosen)
        for search, result in zip(chosen, results, strict=True):
            search.go_on(result)


def _context_of(searches: list[Search]) -> Context:
    """The context of the first, with the ids of all their requests: what is logged, or asked elsewhere, is for all of them."""
    context = searches[0].context
    if len(searches) > 1:
        context = context.copy()
        context.run(logs.request_id.set, ",".join(s.context.get(logs.request_id, "") for s in searches))
    return context
