"""A stack of real servers with its shop, for rehearsals of what operators do: hours, nights, commands, and the answers of versions."""

import os
import subprocess
import sys
from dataclasses import dataclass, field

import httpx
import pytest

from tasks.registry import INDEX_MODEL
from tasks.settings import PROJECT
from tests.chaos import pipeline
from tests.chaos.drill import HOUR_S
from tests.chaos.shop import Shop
from tests.chaos.stack import PRODUCTS, Stack, nginx

MARKS = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not nginx(), reason="nginx is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]
Answers = list[list[tuple[str, float]]]
"""Products and scores of each query, best first."""


@dataclass
class Rehearsal:
    """`answers`: what each version answered when it was live first."""

    stack: Stack
    shop: Shop
    answers: dict[str, Answers] = field(default_factory=dict)

    def hour(self, key: str) -> str:
        """An hour of this tree's pipeline, promoted; gives the version."""
        self.run("hour", key)
        return self.went_live()

    def night(self, key: str) -> str:
        """A night, and the hour after it, which finds that it has all changes."""
        self.run("night", key)
        self.answers[self.live()] = self.asked(self.stack.settings.serving_urls[0])
        return self.hour(f"{key}-after")

    def run(self, story: str, key: str) -> None:
        log = self.stack.folder / "logs" / f"{key}.log"
        process = pipeline.server().Process(target=pipeline.run, args=(self.stack.environment, story, key, str(log)))
        process.start()
        process.join(HOUR_S)
        assert process.exitcode == 0, log.read_text()[-3000:]

    def went_live(self) -> str:
        """The newest version, which is live; products, pictures, queue, registry, feature store and replicas agree about it."""
        version = self.live()
        wrong = self.shop.disagreements(version)
        assert not wrong, wrong
        assert version == self.stack.direct.versions(INDEX_MODEL)[0].version, f"version {version} is live and not the newest"
        self.answers[version] = self.asked(self.stack.settings.serving_urls[0])
        return version

    def live(self) -> str:
        return self.stack.direct.aliases(INDEX_MODEL)["live"]

    def same_answers(self, version: str) -> None:
        """Both replicas serve this version and answer as it did when it was live first."""
        assert self.stack.live() == [version] * 2
        for url in self.stack.settings.serving_urls:
            assert self.asked(url) == self.answers[version], f"version {version} at {url}"

    def asked(self, url: str) -> Answers:
        """What a replica answers to photos, a product, and a product with a filter."""
        folder, search = self.stack.folder / "shop" / "photos", f"{url}/v1/search"
        photos = [(folder / f"{n}-2.jpg").read_bytes() for n in range(PRODUCTS)]
        found = [httpx.post(search, files={"image": photo}, timeout=30, trust_env=False) for photo in photos]
        for query in ({"product_id": "p003"}, {"product_id": "p006", "filter": {"brand": ["brand 1"], "in_stock": True}}):
            found.append(httpx.post(search, json=query, timeout=30, trust_env=False))
        assert {answer.status_code for answer in found} == {200}
        return [[(r["product_id"], r["score"]) for r in answer.json()["results"]] for answer in found]

    def command(self, *words: str) -> str:
        """What `vitrine <words>` prints."""
        command = [sys.executable, "-W", "ignore", "-m", "tasks.cli", *words]
        environment = os.environ | self.stack.environment
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
