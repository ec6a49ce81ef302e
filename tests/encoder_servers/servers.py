"""Triton (out of PyPI's nvidia-pytriton, which has the Python backend alone) and TorchServe on loopback."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Protocol
from zipfile import ZipFile

from serving.contract.encoder import EncoderFolder
from tasks.encoder.servers.model import GRAPH, Batching
from tasks.encoder.servers.torchserve import write_archive
from tasks.encoder.servers.triton import write_repository
from tasks.settings import PROJECT
from tests.servers import free_port

ENVS = PROJECT / "build" / "envs"
"""Environments of the servers, made by the Makefile."""
SHARED_MEMORY = Path("/dev/shm")


class ModelServer(Protocol):
    """A server: where it is reached, how models are written for it, and how it is killed and started again."""

    name: str
    address: str

    def write(self, encoders: EncoderFolder, stated: str = "", graph: Path | None = None) -> None:
        """Writes the model of a version, before the start; `stated` is another fingerprint in it, `graph` another graph."""
        ...

    def start(self) -> None: ...
    def kill(self) -> None: ...


class TritonServer:
    """tritonserver with the Python backend."""

    name: ClassVar[str] = "triton"
    process: subprocess.Popen | None = None

    def __init__(self, folder: Path, scheme: str, batching: Batching = Batching()) -> None:  # noqa: B008
        self.folder, self.batching = folder, batching
        self.http, self.grpc = free_port(), free_port()
        self.address = f"{scheme}://127.0.0.1:{self.grpc if scheme == 'grpc' else self.http}"
        self.package = Path(sysconfig.get_path("purelib", vars={"base": str(ENVS / "triton")}), "pytriton", "tritonserver")

    def write(self, encoders: EncoderFolder, stated: str = "", graph: Path | None = None) -> None:
        model = self.folder / "models" / "python" / write_repository(encoders, self.folder / "models", self.batching)
        if stated:
            config, own = model / "config.pbtxt", encoders.manifest.variant(encoders.manifest.query).fingerprint
            config.write_text(config.read_text().replace(f'"{own}"', f'"{stated}"'))
        if graph:
            shutil.copyfile(graph, model / "1" / "model.onnx")

    def start(self) -> None:
        libraries = (sysconfig.get_config_var("LIBDIR"), self.package.parents[1] / "nvidia_pytriton.libs", self.package / "lib")
        environ = os.environ | {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PATH": os.pathsep.join(
                (str(ENVS / "triton" / "bin"), os.environ["PATH"])
            ),  # the backend's Python is the first there
        }
        command = [
            self.package / "bin" / "tritonserver", f"--model-repository={self.folder / 'models' / 'python'}",
            f"--backend-directory={self._backends()}", f"--http-port={self.http}", f"--grpc-port={self.grpc}",
            "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false", "--exit-on-error=false",
            "--strict-readiness=false", f"--backend-config=python,shm-region-prefix-name={self._memory}",
        ]  # fmt: skip
        self.process = _start([str(part) for part in command], environ, self.folder / "triton.log", self.folder)
        _wait(f"http://127.0.0.1:{self.http}/v2/health/ready", self.process, self.folder / "triton.log")

    def kill(self) -> None:
        _kill(self.process)
        for region in SHARED_MEMORY.glob(f"{self._memory}*"):
            region.unlink()

    @property
    def _memory(self) -> str:
        """What the names of its shared memory begin with: a killed server leaves it behind."""
        return f"vitrine_test_{os.getpid()}_{self.http}_"

    def _backends(self) -> Path:
        """The package's backends with the stub of this Python beside them, where tritonserver looks for it."""
        backends = self.folder / "backends"
        if not backends.exists():
            shutil.copytree(self.package / "backends", backends)
            stubs = self.package / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
            shutil.copy(stubs / "triton_python_backend_stub", backends / "python")
        return backends


class TorchServe:
    """TorchServe, whose files all lie in `folder`."""

    name: ClassVar[str] = "torchserve"
    process: subprocess.Popen | None = None

    def __init__(self, folder: Path, batching: Batching = Batching()) -> None:  # noqa: B008
        self.folder, self.batching = folder, batching
        self.http, *self.others = (free_port() for _ in range(5))
        self.address = f"http://127.0.0.1:{self.http}"

    def write(self, encoders: EncoderFolder, stated: str = "", graph: Path | None = None) -> None:
        archive = self.folder / "store" / f"{write_archive(encoders, self.folder / 'store', self.batching)}.mar"
        with ZipFile(archive) as made:
            parts = {name: made.read(name) for name in made.namelist()}
        if stated:
            own = encoders.manifest.variant(encoders.manifest.query).fingerprint
            parts["settings.json"] = parts["settings.json"].replace(own.encode(), stated.encode())
        if graph:
            parts[GRAPH] = graph.read_bytes()
        with ZipFile(archive, "w") as made:
            for name, data in parts.items():
                made.writestr(name, data)

    def start(self) -> None:
        management, metrics, grpc, grpc_management = self.others
        settings = {
            "inference_address": self.address, "management_address": f"http://127.0.0.1:{management}",
            "metrics_address": f"http://127.0.0.1:{metrics}", "grpc_inference_port": grpc, "grpc_management_port": grpc_management,
            "disable_token_authorization": "true", "enable_envvars_config": "false",
        }  # fmt: skip
        (self.folder / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        environ = os.environ | {"TMPDIR": str(self.folder), "TEMP": str(self.folder), "LOG_LOCATION": str(self.folder)}
        environ |= {"METRICS_LOCATION": str(self.folder)}
        command = [
            ENVS / "torchserve" / "bin" / "torchserve", "--start", "--foreground", "--ncs", "--model-store", self.folder / "store",
            "--models", "all", "--ts-config", self.folder / "config.properties",
        ]  # fmt: skip
        log = self.folder / "torchserve.log"
        self.process = _start([str(part) for part in command], environ, log, self.folder)
        for archive in (self.folder / "store").iterdir():  # it says that it is healthy before its workers are there
            _wait(f"{self.address}/predictions/{archive.stem}", self.process, log, b"")

    def kill(self) -> None:
        _kill(self.process)


def _start(command: list[str], environ: dict[str, str], log: Path, folder: Path) -> subprocess.Popen:
    """Starts a server in a process group of its own, which ends as a whole."""
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environ, cwd=folder, start_new_session=True)


def _wait(url: str, process: subprocess.Popen, log: Path, body: bytes | None = None, limit_s: float = 240.0) -> None:
    """Until `url` answers, by POST where there is a body."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")
        with suppress(OSError), urllib.request.urlopen(url, body, timeout=10):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer within {limit_s:g} s: {log.read_text(errors='replace')[-2000:]}")


def _kill(process: subprocess.Popen | None) -> None:
    if process is None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
