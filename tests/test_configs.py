"""Every file in configs/ and cluster/ is one that its reader accepts."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

from mtrec_ray.config_file import dump, load, parse
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LAUNCHER_SCHEMA = Path(ray.autoscaler.__file__).parent / "ray-schema.json"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_and_reads_back_to_the_same(path):
    run = load(path)
    assert run.name == path.stem
    assert parse(dump(run)) == run


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_what_it_is_for(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    found = [match[1] for line in header if (match := re.match(r"# (\w+): ", line))]
    assert found == ["Purpose", "Hardware", "Command", "Date", "Result"]
    assert any(f"configs/{path.name}" in line or "make quickstart" in line for line in header)


def test_the_configs_that_are_promised_exist():
    assert {"quickstart", "movielens_a", "movielens_b", "deskdrop", "qwen3_8b_zero3"} <= {p.stem for p in CONFIGS}


def test_the_big_config_uses_the_cluster_and_shared_storage():
    run = load(ROOT / "configs/qwen3_8b_zero3.yaml")
    assert (run.cluster.workers, run.cluster.gpus_per_worker) == (8, 1)
    assert (run.engine.zero_stage, run.engine.precision) == (3, "bf16")
    assert {path.split("://")[0] for path in (run.cluster.storage, run.data.prepared_dir, run.data.logs)} == {"s3"}


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_launcher_file_follows_rays_schema(name):
    cluster = yaml.safe_load((ROOT / f"cluster/{name}.yaml").read_text())
    jsonschema.validate(cluster, json.loads(LAUNCHER_SCHEMA.read_text()))
    assert cluster["head_node_type"] in cluster["available_node_types"]
    most = sum(node.get("max_workers", 0) for node in cluster["available_node_types"].values())
    assert cluster["max_workers"] >= most
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert any("auth_token" in path for path in cluster["file_mounts"])


def test_the_rayjob_trains_the_big_config_on_enough_gpus():
    job = yaml.safe_load((ROOT / "cluster/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    python, script, config = job["spec"]["entrypoint"].split()
    image_root = "/home/ray/mtrec-ray/"  # WORKDIR of the Dockerfile
    assert python == "python"
    assert (ROOT / script.removeprefix(image_root)).is_file()
    run = load(ROOT / config.removeprefix(image_root))
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    gpus = cpus = 0
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        gpus += int(limits.get("nvidia.com/gpu", 0)) * group.get("maxReplicas", 0)
        cpus += int(limits["cpu"]) * group.get("maxReplicas", 0) if "nvidia.com/gpu" in limits else 0
    assert gpus >= run.cluster.workers * run.cluster.gpus_per_worker
    assert cpus >= run.cluster.workers * run.cluster.cpus_per_worker


def test_versions_agree():
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    assert f"rayproject/ray:{ray.__version__}-py311" in dockerfile
    assert f"ray[data,default,train,tune]=={ray.__version__}" in (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    for name in ("Dockerfile", "aws.yaml", "gcp.yaml", "rayjob.yaml"):
        assert set(re.findall(r"mtrec-ray:([\d.]+)", (ROOT / "cluster" / name).read_text())) == {version}
