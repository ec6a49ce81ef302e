"""`vitrine stream`: index and promote changes continuously, within a minute."""

from typing import Annotated

import typer

from tasks.cli.output import AsJson, console, print_json
from tasks.settings import Settings


def stream(
    seconds: Annotated[
        float, typer.Option(min=0, help="minimum interval between rounds; 0: the setting VITRINE_STREAM_SECONDS")
    ] = 0,
    promote: Annotated[bool, typer.Option(help="promote each version; otherwise it becomes the candidate")] = True,
    as_json: AsJson = False,
) -> None:
    """Index pending changes and promote the result in a loop, until Ctrl-C or SIGTERM."""
    import logging
    import signal
    from datetime import datetime
    from threading import Event

    from tasks.pipelines.stream import Stream

    logging.basicConfig(level=logging.ERROR)
    chosen = Settings.load()
    every, stop = seconds or chosen.stream_seconds, Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def say(words: str) -> None:
        if as_json:  # a line each
            print_json({"at": datetime.now().astimezone(), "message": words}, indent=None)
        else:
            console.print(f"{datetime.now():%H:%M:%S} {words}", markup=False)

    say(f"changes from {chosen.changes.partition(':')[0]}, at most one version every {every:g} s; Ctrl-C stops")
    Stream(every, stop, say, promote).run()
