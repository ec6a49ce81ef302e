"""Alerts of docker/watching/alerts.yml: each fires, each has its page, and each asks for metrics that a replica has."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from serving.app import create_app
from serving.settings import ServingSettings
from tasks.settings import PROJECT

RULES = PROJECT / "docker" / "watching" / "alerts.yml"
FIRE = Path(__file__).with_name("alerts_fire.yml")
PAGE = PROJECT / "docs" / "operate" / "alerts.md"


def alerts() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_each_alert_fires_on_what_it_is_for_and_none_on_a_healthy_replica(tmp_path: Path) -> None:
    (tmp_path / "fire.yml").write_text(FIRE.read_text().replace("RULES", str(RULES)))
    ran = subprocess.run(["promtool", "test", "rules", str(tmp_path / "fire.yml")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_each_alert_is_expected_to_fire_somewhere() -> None:
    assert {a["alert"] for a in alerts()} == set(re.findall(r'alertname="(\w+)"', FIRE.read_text()))


def test_each_alert_has_a_section_that_says_what_it_means_what_to_look_at_and_what_to_do() -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"docs/operate/alerts.md#{alert['alert'].lower()}"
        section = sections.pop(alert["alert"])
        assert all(f"**{part}**" in section for part in ("Means", "Look at", "Do")), alert["alert"]
    assert not [name for name in sections if name.startswith("Vitrine")]


def test_alerts_ask_for_metrics_that_exist(tmp_path: Path) -> None:
    (tmp_path / "aliases.json").write_text("{}")
    chosen = {"release": str(tmp_path), "role": "gateway", "shard_urls": ("http://127.0.0.1:1",)}
    scraped = create_app(ServingSettings(**chosen)).state.replica.metrics.text().decode()  # type: ignore[arg-type]
    known = set(re.findall(r"^# TYPE (\w+)", scraped, re.MULTILINE))
    asked = {name for a in alerts() for name in re.findall(r"vitrine_\w+", a["expr"])}
    assert len(asked) >= 12
    assert {n for n in asked if n not in known and re.sub(r"_bucket$", "", n) not in known} == set()
