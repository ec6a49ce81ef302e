"""docker/compose.yaml: its secrets, its profiles, and the limits of the proxy in front of replicas."""

import ipaddress
import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import ServingSettings
from tasks.settings import PROJECT, Settings

DOCKER = PROJECT / "docker"
COMPOSE = (DOCKER / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
NGINX = (DOCKER / "nginx" / "nginx.conf").read_text()
SECRET = re.compile(
    r"(PASSWORD|SECRET|TOKEN|_KEY(_ID)?|ALCHEMY_CONN|BROKER_URL|RESULT_BACKEND|CACHE_URL|REDIS_URL)$|CATALOG$|DATABASE_URI|BACKEND_STORE_URI"
)
REQUIRED = re.compile(r"\$\{(\w+):\?run make secrets\}")


def drawn(path: Path) -> dict[str, str]:
    subprocess.run([sys.executable, str(DOCKER / "make-secrets"), str(path)], check=True, capture_output=True)
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_every_secret_is_drawn_once_into_a_file_of_its_owner_alone(tmp_path: Path) -> None:
    first = drawn(tmp_path / ".env")
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert set(REQUIRED.findall(COMPOSE)) <= set(first)
    assert all(len(value) >= 32 for value in first.values())
    assert len(set(first.values())) == len(first)
    kept = "\n".join(f"{k}={v}" for k, v in first.items() if k != "REDIS_PASSWORD")
    (tmp_path / ".env").write_text(kept)
    second = drawn(tmp_path / ".env")
    assert second["REDIS_PASSWORD"] != first["REDIS_PASSWORD"]
    assert {k: v for k, v in second.items() if k != "REDIS_PASSWORD"} == {k: v for k, v in first.items() if k != "REDIS_PASSWORD"}


@pytest.mark.parametrize("name", SERVICES)
def test_no_password_is_written_down_and_none_has_a_default(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRET.search(variable):
            assert REQUIRED.search(value), f"{name}: {variable}={value}"
    text = yaml.safe_dump(SERVICES[name])
    assert re.findall(r"//[\w-]*:(?!\$\{\w+:\?)[^@/\s\"]+@", text) == [], "a password in an address"
    assert not re.search(r"\$\{\w*(PASSWORD|SECRET|TOKEN|_KEY)\w*(:?-)", text), "a default of a secret"


def test_profiles_hold_what_they_say() -> None:
    of = {p: {n for n, s in SERVICES.items() if p in s["profiles"]} for p in ("minimal", "full", "gpu")}
    assert {"postgres", "redis", "s3", "mlflow", "worker-1", "serving-1", "serving-2", "nginx"} <= of["minimal"]
    assert {f"airflow-{n}" for n in ("api-server", "scheduler", "dag-processor", "triggerer")} <= of["minimal"]
    assert of["full"] - of["minimal"] == {"worker-2", "spark", "spark-worker-1", "spark-worker-2", "prometheus", "grafana"}
    assert of["gpu"] - of["full"] == {"worker-gpu", "spark-worker-gpu"}
    for name, service in SERVICES.items():
        needs = set(service.get("depends_on", ()))
        assert all(needs <= of[p] for p in service["profiles"]), name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_the_settings_that_it_names_exist() -> None:
    pipeline = {f"VITRINE_{f.name.upper()}" for f in fields(Settings)}
    replica = {f"VITRINE_{f.name.upper()}" for f in fields(ServingSettings)}
    for name, service in SERVICES.items():
        named = {v for v in service.get("environment", {}) if v.startswith("VITRINE_")}
        assert named <= (replica if name.startswith("serving") else pipeline), name


@pytest.mark.parametrize(("name", "file"), [("worker-1", "settings.env"), ("serving-1", "serving/settings.env")])
def test_a_setting_that_its_file_cannot_change_is_a_variable_which_the_file_names(name: str, file: str) -> None:
    """`environment` comes before `env_file`: what stands in both would silently be ignored in the file."""
    assert SERVICES[name]["env_file"][0].endswith(f":-{file}}}")
    settings = (DOCKER / file).read_text()
    for variable, value in SERVICES[name]["environment"].items():
        if variable.startswith("VITRINE_"):
            assert value.startswith("${") or variable == "VITRINE_PROXIES", variable
            assert f" {variable}" in settings, f"{file} does not say who sets {variable}"
            assert not re.search(rf"^#? ?{variable}=", settings, re.MULTILINE)


def test_a_service_of_ones_own_takes_the_place_of_each_that_keeps_state() -> None:
    """None depends on it, so that it can be left out, and its address is a variable."""
    own = {"postgres", "redis", "redis-cache", "s3", "s3-buckets", "mlflow"}
    for name, service in SERVICES.items():
        assert not own & set(service.get("depends_on", ())), name
        for variable, value in service.get("environment", {}).items():
            if (
                re.search(r"[@/](postgres|redis(-cache)?|s3|mlflow|airflow-api-server):", str(value))
                and "EXECUTION_API" not in variable
            ):
                assert re.match(r"(db\+)?\$\{\w+:-", value), f"{name}: {variable}"


def test_what_the_page_says_of_services_of_ones_own_is_there() -> None:
    page = (PROJECT / "docs" / "operate" / "install.md").read_text()
    table = page.split("| yours |")[1].split("\n\n")[0].splitlines()[2:]
    for row in table:
        _, _, variables, services, _ = row.split("|")
        named = re.findall(r"`([A-Z][A-Z0-9_]+)`", variables)
        assert named
        assert all(f"${{{v}:" in COMPOSE for v in named), row
        assert set(services.strip(" `").split()) <= set(SERVICES), row


def made(tmp_path: Path, *words: str, services: str = "one two three") -> subprocess.CompletedProcess[str]:
    """What `make` runs, but `make secrets`, with a command in the place of docker that knows three services and prints what it is told."""
    listed = f"[ '{services}' ] && printf '%s\\n' {services}"
    (tmp_path / "docker").write_text(
        f'#!/bin/sh\ncase "$*" in *"config --services") {listed};; *) echo "$REDIS_IMAGE" "$@";; esac\n'
    )
    (tmp_path / "docker").chmod(0o755)
    command = ["make", "--no-print-directory", "-o", "secrets", f"CONTAINER={tmp_path}/docker", *words]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}  # tests run below make
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=own)


def test_make_leaves_services_out_and_takes_every_profile_down(tmp_path: Path) -> None:
    assert made(tmp_path, "stack", "PROFILE=full").stdout.endswith("--profile full up -d\n")
    assert made(tmp_path, "stack", "WITHOUT=two").stdout.endswith("--profile minimal up -d one three\n")
    assert made(tmp_path, "stack-down").stdout.endswith("--profile minimal --profile full --profile gpu down\n")


@pytest.mark.parametrize(
    ("without", "services", "said"),
    [
        ("two", "", "compose names no services"),
        ("twoo", "one two three", "the profile minimal has no service twoo"),
        ("one two", "one two", "no service is left"),
    ],
)
def test_make_starts_nothing_where_it_cannot_leave_out_what_it_is_told(
    without: str, services: str, said: str, tmp_path: Path
) -> None:
    ran = made(tmp_path, "stack", f"WITHOUT={without}", services=services)
    assert ran.returncode != 0
    assert ran.stdout == ""
    assert f"{said}: nothing was started" in ran.stderr


def test_stand_ins_are_of_the_tag_that_runs(tmp_path: Path) -> None:
    assert made(tmp_path, "stack", "STANDINS=1", "TAG=0.2.0").stdout.startswith("vitrine-standins:0.2.0 compose")
    named = dict(line.split("=", 1) for line in (DOCKER / "standins" / "images.env").read_text().splitlines())
    assert {v for k, v in named.items() if k.endswith("_IMAGE")} == {"vitrine-standins:${TAG:-latest}"}


def test_nothing_is_left_in_a_volume_without_a_name() -> None:
    """What an image declares as VOLUME is mounted by name, or in memory."""
    declared = {"airflow": "/var/lib/vitrine", "spark": "/var/lib/vitrine", "serving": "/var/lib/vitrine", "redis": "/data"}
    named = yaml.safe_load(COMPOSE)["volumes"]
    for name, service in SERVICES.items():
        mounted = [v.split(":")[:2] for v in service.get("volumes", ()) if not v.startswith("./")]
        assert all(source in named for source, _ in mounted), name
        for image, folder in declared.items():
            if image in service["image"]:
                assert folder in [target for _, target in mounted] + service.get("tmpfs", []), name
    sources = [v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", ()) if not v.startswith("./")]
    assert sorted(sources) == sorted(named), "one each"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("redis", "requirepass drawn\nappendonly yes\ndir /data\nbind 0.0.0.0\n"),
        ("redis-cache", 'requirepass drawn\nmaxmemory 1gb\nmaxmemory-policy allkeys-lru\nsave ""\ndir /tmp\nbind 0.0.0.0\n'),
    ],
)
def test_redis_is_the_process_that_is_told_to_end_and_its_password_is_in_a_file(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "redis-server").write_text('#!/bin/sh\necho $$\nstat -c %a "$1"\ncat "$1"\n')
    (tmp_path / "redis-server").chmod(0o755)
    *shell, script = SERVICES[name]["entrypoint"]
    script = script.replace("$$", "$").replace("/tmp/", f"{tmp_path}/")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REDIS_PASSWORD": "drawn", "MAXMEMORY": "1gb"}
    with subprocess.Popen([*shell, script], stdout=subprocess.PIPE, text=True, env=environment) as ran:
        out, _ = ran.communicate()
    assert out.split("\n", 2) == [str(ran.pid), "600", expected]


def test_tini_is_the_first_process_where_java_is_started() -> None:
    for service in SERVICES.values():
        if "AIRFLOW_IMAGE" in service["image"] or "SPARK_IMAGE" in service["image"]:
            assert "command" in service
            assert "entrypoint" not in service
    for name in ("airflow", "spark"):
        assert "ENTRYPOINT [" in (PROJECT / "docker" / f"Dockerfile.{name}").read_text()
        assert "install-java" in (PROJECT / "docker" / f"Dockerfile.{name}").read_text()
    assert " tini " in (PROJECT / "docker" / "install-java").read_text()


def test_replicas_reach_no_redis_but_that_of_their_caches() -> None:
    assert SERVICES["redis"]["networks"] == ["data"]
    assert SERVICES["redis-cache"]["networks"] == ["edge"]
    for name in ("serving-1", "serving-2"):
        assert list(SERVICES[name]["networks"]) == ["edge"]
        assert "CACHE_PASSWORD" in SERVICES[name]["environment"]["VITRINE_CACHE_URL"]
        assert "REDIS_PASSWORD" not in yaml.safe_dump(SERVICES[name])


def test_the_search_alone_can_be_published() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert port.startswith(
                "${SEARCH_PUBLISH:-${PUBLISH:-127.0.0.1}}:" if name == "nginx" else "${PUBLISH:-127.0.0.1}:"
            ), name


def test_replicas_have_longer_to_end_than_they_take() -> None:
    assert SERVICES["serving-1"]["stop_grace_period"] == "30s"


def test_every_file_that_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (DOCKER / volume.split(":")[0]).exists(), volume


def test_whoever_opens_the_registry_has_the_files_that_settings_name() -> None:
    """The board of the API server checks signatures by the same key as the workers."""
    for name, service in SERVICES.items():
        if "AIRFLOW_" in service["image"]:
            opens = name.startswith("worker") or name == "airflow-api-server"
            assert ("./pipeline:/etc/vitrine:ro" in service["volumes"]) == opens, name


def test_replicas_know_their_proxy_and_their_addresses_stay() -> None:
    proxy = SERVICES["nginx"]["networks"]["edge"]["ipv4_address"]
    replicas = [n for n in SERVICES if n.startswith("serving-")]
    assert re.findall(r"server (serving-\d):8000", NGINX) == replicas
    for name in replicas:
        assert SERVICES[name]["environment"]["VITRINE_PROXIES"] == proxy
        assert SERVICES[name]["networks"]["edge"]["ipv4_address"]
        assert SERVICES[name]["read_only"]
    urls = SERVICES["worker-1"]["environment"]["VITRINE_SERVING_URLS"]
    assert urls == "${SERVING_URLS:-" + ",".join(f"http://{n}:8000" for n in replicas) + "}"


def test_the_proxys_limits_are_those_of_a_replica() -> None:
    settings = ServingSettings()
    limits = dict(re.findall(r"^\s*(client_\w+|keepalive_timeout) (\d+)\w*;", NGINX, re.MULTILINE))
    assert int(limits["client_max_body_size"]) * 1024 == int(1.4 * settings.max_image_bytes) + 64 * 1024
    assert float(limits["client_header_timeout"]) == settings.head_s
    assert float(limits["client_body_timeout"]) == settings.body_s
    buffers = re.search(r"large_client_header_buffers (\d+) (\d+)k", NGINX)
    assert buffers is not None
    assert int(buffers[1]) * int(buffers[2]) * 1024 == settings.head_bytes
    assert "limit_conn connections" in NGINX
    for private in ("metrics", "v1/samples", "v1/follow", "shard", "v1/hooks"):
        assert private in re.findall(r"location ~ \^/\(([^)]*)\)", NGINX)[0].split("|")


@pytest.mark.parametrize("file", [".gitignore", ".dockerignore"])
def test_files_that_hold_secrets_get_into_no_repository_and_no_image(file: str) -> None:
    """Keys and settings of one's own lie beside those that are tracked, as the pages say."""
    ignored = [re.sub("^(!?)/", r"\1", line) for line in (PROJECT / file).read_text().splitlines()]
    for pattern, kept in (
        ("docker/*.env*", "docker/settings.env"),
        ("docker/serving/*", "docker/serving/settings.env"),
        ("docker/pipeline/*", "docker/pipeline/README.md"),
    ):
        assert ignored.index(pattern) < ignored.index(f"!{kept}")
        assert (PROJECT / kept).exists()


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (Debian: nginx-light)")
@pytest.mark.parametrize("behind_tls", [False, True])
def test_nginx_takes_the_file(behind_tls: bool, tmp_path: Path) -> None:
    text = NGINX.replace("/tmp/", f"{tmp_path}/").replace("serving-1:", "127.0.0.1:").replace("serving-2:", "127.0.0.2:")
    if behind_tls:
        text, named = re.subn(r"# (set_real_ip_from|real_ip_header) ", r"\1 ", text)
        assert named == 2
    (tmp_path / "nginx.conf").write_text(text)
    ran = subprocess.run(["nginx", "-t", "-e", "stderr", "-c", str(tmp_path / "nginx.conf")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_what_ends_tls_on_the_machine_comes_from_the_networks_gateway() -> None:
    network = ipaddress.ip_network(yaml.safe_load(COMPOSE)["networks"]["edge"]["ipam"]["config"][0]["subnet"])
    assert f"set_real_ip_from {next(network.hosts())};" in NGINX


def test_the_proxy_logs_whom_it_refused_and_no_shoppers_words() -> None:
    (logged,) = re.findall(r"log_format refused '(.*)';", NGINX)
    assert "access_log /dev/stdout refused if=$refused;" in NGINX
    assert set(re.findall(r"\$(\w+)", logged)).isdisjoint({"request", "args", "query_string", "request_uri", "http_referer"})
    assert {"remote_addr", "status", "upstream_addr"} <= set(re.findall(r"\$(\w+)", logged))


def test_our_images_are_those_of_one_tag() -> None:
    for name, service in SERVICES.items():
        if "vitrine-" in service["image"]:
            assert service["image"].endswith(":${TAG:-latest}-gpu}" if service["profiles"] == ["gpu"] else ":${TAG:-latest}}"), (
                name
            )


@pytest.mark.parametrize("extras", ["", ",pgvector"])
def test_make_hands_the_extras_on_to_an_image(extras: str, tmp_path: Path) -> None:
    command = made(tmp_path, "image-serving", "TAG=0.2.0", f"EXTRAS={extras}").stdout
    assert ("--build-arg EXTRAS=,pgvector" in command) == bool(extras)
    assert "-t vitrine-serving:0.2.0 ." in command


def test_an_image_for_gpus_takes_no_other_ones_tag(tmp_path: Path) -> None:
    assert "-t vitrine-airflow:0.2.0-gpu ." in made(tmp_path, "image-airflow", "TAG=0.2.0", "HARDWARE=gpu").stdout
    assert "-t vitrine-airflow:latest-gpu ." in made(tmp_path, "image-airflow", "HARDWARE=gpu").stdout


@pytest.mark.parametrize("file", sorted(DOCKER.glob("Dockerfile.*")), ids=lambda f: f.name)
def test_images_name_their_base_by_argument_run_as_nobody_and_hold_no_standalone(file: Path) -> None:
    text = file.read_text()
    assert "ARG BASE=" in text
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}
    assert "org.opencontainers.image.title" in text
    assert "standalone" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    assert "USER 10001" in text or file.name == "Dockerfile.standins"


def test_no_production_file_starts_airflow_standalone() -> None:
    assert '"standalone"' not in COMPOSE
    assert "airflow standalone" not in COMPOSE
