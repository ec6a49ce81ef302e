"""The values for Airflow's Helm chart: what the image has for the chart's pods, who reaches whom, users, secrets, settings."""

import importlib.util
import re
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from tasks.settings import PROJECT, Settings

VALUES = PROJECT / "docker" / "kubernetes" / "airflow-values.yaml"
PAGE = PROJECT / "docs" / "operate" / "install.md"


def airflow_values() -> dict[str, Any]:
    return dict(yaml.safe_load(VALUES.read_text()))


def airflows_own_configuration() -> str:
    spec = importlib.util.find_spec("airflow")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / "config_templates" / "config.yml").read_text()


def test_the_image_of_airflow_has_what_the_charts_pods_ask_of_it() -> None:
    values = airflow_values()
    dockerfile = (PROJECT / "docker" / "Dockerfile.airflow").read_text()
    entrypoint = PROJECT / "docker" / "airflow-entrypoint"
    ran = subprocess.run([entrypoint, "sh", "-c", "exit 3"])
    assert ran.returncode == 3, "probes run through it"
    assert "COPY docker/airflow-entrypoint /entrypoint" in dockerfile
    assert 'ENTRYPOINT ["/entrypoint"]' in dockerfile
    assert f"install -d -o vitrine {values['airflowHome']}" in dockerfile, "the chart mounts files into it; pods write to it"
    assert "statsd" not in re.findall(r"ARG EXTRAS=(.*)", dockerfile)[0]
    assert values["statsd"] == {"enabled": False}
    for name in ("workers", "scheduler", "dagProcessor", "triggerer"):
        assert values[name]["logGroomerSidecar"] == {"enabled": False}, f"{name}: there is no /clean-logs"


def test_airflows_users_come_from_a_secret_and_its_pods_hold_no_token() -> None:
    values = airflow_values()
    core, api = values["config"]["core"], values["apiServer"]
    assert core["auth_manager"] in airflows_own_configuration()
    assert not values["createUserJob"]["enabled"]
    mount = api["extraVolumeMounts"][0]["mountPath"]
    assert f"cp {mount}/passwords.json {Path(core['simple_auth_manager_passwords_file']).parent}/" in api["args"][-1]
    for name in ("workers", "scheduler", "apiServer", "dagProcessor", "triggerer", "migrateDatabaseJob"):
        assert values[name]["serviceAccount"] == {"automountServiceAccountToken": False}, name


def test_workers_and_board_have_the_files_that_settings_name_where_there_are_any() -> None:
    for name in ("workers", "apiServer"):
        pod = airflow_values()[name]
        volume, mount = pod["extraVolumes"][-1], pod["extraVolumeMounts"][-1]
        assert volume["secret"] == {"secretName": "vitrine-files", "optional": True}, name
        assert mount == {"name": volume["name"], "mountPath": "/etc/vitrine", "readOnly": True}, name


def test_airflows_pods_have_no_more_rights_than_search() -> None:
    contexts = airflow_values()["securityContexts"]
    assert contexts["pod"]["runAsNonRoot"]
    assert contexts["pod"]["runAsUser"] == airflow_values()["uid"]
    assert contexts["containers"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_tasks_and_people_reach_airflows_api_server() -> None:
    values = airflow_values()
    assert values["networkPolicies"]["enabled"]
    peers = values["apiServer"]["networkPolicy"]["ingress"]["from"]
    assert {"podSelector": {"matchLabels": {"tier": "airflow"}}} in peers, (
        "the chart's policy is empty without: no task could report"
    )


def test_keda_and_airflow_each_get_an_address_that_they_can_read() -> None:
    values = airflow_values()
    assert not values["pgbouncer"]["enabled"], "it would ask a database that the chart did not make"
    assert values["enableBuiltInSecretEnvVars"]["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] is False
    (own,) = values["secret"]
    assert own["envName"] == "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    assert own["secretName"] == values["data"]["metadataSecretName"]
    page = PAGE.read_text()
    assert "--from-literal=connection=postgresql://" in page
    assert f"--from-literal={own['secretKey']}=postgresql+psycopg2://" in page


def test_every_secret_that_pods_ask_for_is_made_on_the_page() -> None:
    text = "\n".join(f.read_text() for f in sorted(VALUES.parent.rglob("*.yaml")))
    asked = set(re.findall(r"(?:secretRef|secretKeyRef): \{name: ([\w-]+)|[sS]ecretName: ([\w-]+)", text))
    names = {a or b for a, b in asked} - {"vitrine-tls"}
    assert len(names) >= 7
    made = re.findall(r"create secret generic ([\w-]+)", PAGE.read_text())
    assert names == set(made)


def test_values_of_airflows_chart_name_settings_that_exist_and_no_secret() -> None:
    text = VALUES.read_text()
    values = airflow_values()
    known = {f"VITRINE_{f.name.upper()}" for f in fields(Settings)}
    assert {e["name"] for e in values["env"] if not e["name"].startswith("MLFLOW_")} <= known
    assert not re.search(
        r"(?i)(password|token|secret)[\w-]*: *['\"]?\w{8,}['\"]?$", re.sub(r"SecretName: .*", "", text), re.MULTILINE
    )
    assert values["executor"] == "CeleryExecutor"
    assert not values["postgresql"]["enabled"]
