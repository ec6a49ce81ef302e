"""`make demo`: nothing starts before what can be seen to be wrong is mended, and whatever fails, a person can look at it and stop it."""

import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tasks.demo import __main__ as demo
from tasks.demo import services
from tasks.demo.chain import _tell_gates
from tasks.demo.follow import _last_words
from tasks.demo.supervisor import Service, Supervisor
from tasks.errors import VitrineError
from tasks.settings import HOME_FILE, Settings
from tests.catalogs import small_catalog
from tests.servers import free_port

ANSWERS = """
import sys, http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of the test's own; whatever a test started there is stopped."""
    for name in [n for n in os.environ if n.startswith("VITRINE_")] + ["CATALOG", "ENGINE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VITRINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path / "home"
    supervisor = Supervisor(tmp_path / "home")
    for name in supervisor.running():
        supervisor.stop(name)


def small_services(monkeypatch: pytest.MonkeyPatch, *codes: str) -> list[str]:
    """Three small servers in place of the real ones; gives their names."""
    names = ["mlflow", "serving", "airflow"]
    made = []
    for name, code in zip(names, codes or (ANSWERS,) * 3, strict=True):
        port = free_port()
        made.append(Service(name, (sys.executable, "-c", code, str(port)), {}, f"http://127.0.0.1:{port}/"))
    monkeypatch.setattr(services, "all_services", lambda _: made)
    return names


def run(command: str = "demo") -> tuple[int, str]:
    """The exit status of a command and what it printed, in one long line."""
    text = io.StringIO()
    before = demo.Console
    demo.Console = lambda **options: Console(**options | {"file": text, "width": 400})  # type: ignore[assignment, misc]
    try:
        return demo.main([command]), text.getvalue()
    finally:
        demo.Console = before  # type: ignore[misc]


def test_secrets_are_made_once_and_another_catalogue_replaces_the_last(home: Path, tmp_path: Path) -> None:
    first, other = small_catalog(tmp_path / "first", 2), small_catalog(tmp_path / "other", 2)
    before = demo.demo_settings(str(first))
    assert all(len(getattr(before, n)) > 24 for n in ("airflow_password", "admin_token", "webhook_secret"))
    demo.write_home_file(before, demo.WRITTEN)
    assert (home / HOME_FILE).stat().st_mode & 0o777 == 0o600
    assert Settings.load() == before
    after = demo.demo_settings(str(other))
    assert after == dataclasses.replace(before, catalog=str(other))
    demo.write_home_file(after, demo.WRITTEN)
    assert Settings.load().catalog_uri == str(other)
    sample = demo.demo_settings("")
    assert sample.catalog == "", "without CATALOG it is the sample again"
    demo.write_home_file(sample, demo.WRITTEN)
    assert Settings.load().catalog_uri == f"sqlite:///{home / 'catalog' / 'catalog.db'}"
    with pytest.raises(VitrineError, match="CATALOG=/none: there is no such folder"):
        demo.demo_settings("/none")


def test_nothing_starts_before_the_catalogue_is_as_it_must_be(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = small_catalog(tmp_path / "shop", 8)
    (shop / "products.csv").write_text((shop / "products.csv").read_text().replace("12,EUR", "dear,EUR"))
    (shop / "images/3.jpg").unlink()
    monkeypatch.setenv("CATALOG", str(shop))
    small_services(monkeypatch)
    status, said = run()
    assert status == 1
    for told in (
        "products.csv line 4: price 'dear' is not a number",
        "1 of 8 pictures unusable, allowed 2 %: VITRINE_MOST_QUARANTINED",
        "line 5: images/3.jpg: there is no such file",
        "8 usable photos are held out (split val, or test) and 0 product pictures could stand in for others",
    ):
        assert told in said
    assert not home.exists()


@pytest.mark.parametrize("error", [VitrineError("train_encoder, task judge: too [blue]"), RuntimeError("a bug")])
def test_whatever_fails_once_all_is_up_the_password_is_told_and_how_to_stop(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setenv("CATALOG", str(small_catalog(tmp_path / "shop", 24)))
    names = small_services(monkeypatch)

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(demo, "make_live", fails)
    if isinstance(error, VitrineError):
        status, said = run()
        assert status == 1
        assert "stopped: train_encoder, task judge: too [blue]" in said
        assert f"password {Settings.load().airflow_password}" in said
        assert "The services are up, until `make down`" in said
    else:
        with pytest.raises(RuntimeError):
            run()
    assert Supervisor(home).running() == sorted(names)
    status, said = run("down")
    assert (status, Supervisor(home).running()) == (0, [])
    assert all(f"stopped {name}" in said for name in names)
    assert Settings.load().catalog == str(tmp_path / "shop"), "the home still knows its catalogue"


def test_when_one_service_does_not_start_no_other_is_left_running(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATALOG", str(small_catalog(tmp_path / "shop", 24)))
    small_services(monkeypatch, ANSWERS, ANSWERS, "raise SystemExit('no room')")
    status, said = run()
    assert status == 1
    assert "airflow stopped while starting" in said
    assert "no room" in said
    assert "stopped mlflow again" in said
    assert Supervisor(home).running() == []


def test_a_service_that_ran_before_is_left_alone_by_a_demo_that_fails(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATALOG", str(small_catalog(tmp_path / "shop", 24)))
    small_services(monkeypatch, ANSWERS, ANSWERS, "raise SystemExit('no room')")
    first = services.all_services(Settings())[0]
    supervisor = Supervisor(home)
    supervisor.start(first)
    supervisor.wait(first)
    assert run()[0] == 1
    assert supervisor.running() == ["mlflow"]


def test_failed_gates_are_told_with_numbers_and_the_rival() -> None:
    text = io.StringIO()
    gate = {
        "name": "beats_untrained_recall_at_10", "value": 0.3125, "threshold": 0.5, "passed": False,
        "reason": "Recall@10 on photos: 0.312, which must be more than the 0.500 of the same encoder before training",
    }  # fmt: skip
    _tell_gates({"version": "3", "against": "", "failed": [gate]}, Console(file=text, width=200))
    assert "encoder version 3 did not pass 1 of its gates" in text.getvalue()
    assert f"{gate['name']}: {gate['reason']}" in text.getvalue()
    text.truncate(0)
    _tell_gates({"version": "3", "against": "2", "failed": [gate]}, Console(file=text, width=200))
    assert "encoder version 2, the champion, stays" in text.getvalue()


LAST: list[tuple[Callable[[], list[str]], str]] = [
    (lambda: ["start", "AirflowFailException: 2 things\n  - one\n  - two", "ended"], "2 things\n  - one\n  - two"),
    (lambda: ["AirflowFailException: first", "AirflowFailException: last"], "last"),
    (lambda: ["AirflowSkipException: it is live already"], "it is live already"),
    (lambda: ["Skipping task: it is live already", "::endgroup::"], "it is live already"),
    (lambda: ["Task failed: 2 things\n  - one", "Vitrine: rebuild_index.embed failed: 2 things"], "2 things\n  - one"),
    (lambda: ["ValueError: a bug"], ""),
    (lambda: [], ""),
]


@pytest.mark.parametrize(("entries", "told"), LAST)
def test_a_tasks_last_words_are_whole(entries: Callable[[], list[str]], told: str) -> None:
    assert _last_words(entries()) == told
