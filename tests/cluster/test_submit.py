"""`ray job submit` of the jobs to a local cluster of two simulated nodes, token authentication on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtrec_ray.config_file import load
from mtrec_ray.data.sample import write_sample
from tests.conftest import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 60


@dataclass(frozen=True)
class Site:
    """A running cluster and what a user has for it: the environment of her shell, logs and a config."""

    environment: dict[str, str]
    folder: Path
    sessions: Path

    def ray(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """One finished `ray` command, as typed in the checkout."""
        environment = {**self.environment, **changes}
        return subprocess.run(
            [RAY, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    def submit(self, job: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = ["python", f"jobs/{job}.py", str(self.folder / "run.yaml"), *arguments]
        return self.ray("job", "submit", "--working-dir", ".", "--", *command, **changes)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    write_sample(str(folder / "logs"), users=60, items=40, days=6, shards=2)
    (folder / "run.yaml").write_text(_config(folder))
    head, dashboard = _free_port(), _free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",  # a cluster's image has the same Python on every node
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    sessions = Path(tempfile.mkdtemp(prefix="ray_"))  # short, for its sockets
    common = ["--block", "--disable-usage-stats", f"--temp-dir={sessions}", "--dashboard-agent-listen-port=0"]
    ports = [f"--port={head}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={_free_port()}"]
    commands = [
        ["--head", "--num-cpus=1", *ports, *common],
        [f"--address=127.0.0.1:{head}", "--num-cpus=2", *common],
    ]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"node{number}.log").open("wb") as log:
                node = subprocess.Popen(
                    [RAY, "start", *command], env=environment, stdout=log, stderr=log, start_new_session=True
                )
            nodes.append(node)
            _wait_for_nodes(environment, len(nodes), folder)
        yield Site(environment, folder, sessions)
    finally:
        for node in nodes:  # at once: a graceful end takes half a minute
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        shutil.rmtree(sessions, ignore_errors=True)


def _config(folder: Path) -> str:
    text = (folder / "logs" / "config.yaml").read_text()
    text += f"cluster: {{storage: {folder}/runs, workers: 2}}\n"
    text += "train: {epochs: 1, max_steps: 4}\nengine: {name: plain}\n"
    text += "backbone: {pretrained: false, vocab_size: 300, width: 16, layers: 1, heads: 2}\n"
    text += "evaluate: {bootstrap: 0, baselines: [constant]}\n"
    return text.replace("  logs:", f"  prepared_dir: {folder}/prepared\n  buckets: 2\n  logs:")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for_nodes(environment: dict[str, str], count: int, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if _alive_nodes(environment) >= count:
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text() for path in folder.glob("node*.log"))
    pytest.fail(f"{count} nodes did not start in {START_SECONDS} s:\n{logs}")


def _alive_nodes(environment: dict[str, str]) -> int:
    request = urllib.request.Request(
        f"{environment['RAY_API_SERVER_ADDRESS']}/nodes?view=summary",
        headers={"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            nodes = json.load(answer)["data"]["summary"]
    except OSError:
        return 0  # the server has not started yet
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


def test_a_job_without_the_token_is_refused(site):
    done = site.ray("job", "list", RAY_AUTH_TOKEN="wrong")
    assert done.returncode != 0
    assert "401" in done.stderr + done.stdout or "uthenticat" in done.stderr + done.stdout


def test_prepare_is_followed_to_its_end_and_leaves_prepared_data(site):
    done = site.submit("prepare")
    assert done.returncode == 0, done.stdout + done.stderr
    (manifest,) = (site.folder / "prepared").glob("*/manifest.json")
    assert str(manifest.parent) in done.stdout  # the job's own output, followed
    assert "succeeded" in done.stdout + done.stderr
    assert json.loads(manifest.read_text())["counts"]["rows_read"] > 0


def test_a_wrong_config_fails_the_job_with_the_message(site):
    done = site.submit("train", "--set", "train.epoch=1")
    assert done.returncode != 0
    assert "unknown key 'train.epoch'. Did you mean 'epochs'?" in done.stdout
    assert "Traceback" not in done.stdout


def test_train_leaves_the_run_folder(site):
    done = site.submit("train")
    assert done.returncode == 0, done.stdout + done.stderr
    run = site.folder / "runs" / "sample"
    assert str(run) in done.stdout
    assert load(run / "config.yaml").cluster.workers == 2
    found = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.json", "metrics.jsonl", "predictions.parquet", "report.html", "checkpoint"} <= found
    assert set(json.loads((run / "metrics.json").read_text())["splits"]["test"]["tasks"]) >= {"click", "dwell"}


def test_the_package_holds_what_jobs_need_and_nothing_else(site):
    packages = list(site.sessions.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert packages
    for package in packages:
        files = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
        assert {path.parts[0] for path in files} == {"jobs", "configs", "mtrec_ray", "pyproject.toml", "LICENSE"}
        packed = {str(path) for path in files if "__pycache__" not in path.parts}  # made by the jobs that ran there
        assert {"jobs/train.py", "configs/quickstart.yaml", "mtrec_ray/config/run.py"} <= packed
        assert {Path(name).suffix for name in packed} <= {".py", ".yaml", ".toml", ".html", ".j2", ".typed", ""}
        assert sum((package / name).stat().st_size for name in packed) < 2_000_000
