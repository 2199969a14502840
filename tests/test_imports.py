"""Imports go downwards, and the core works where ray and deepspeed are not installed."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "mtrec_ray"
LAYERS = [
    {"errors", "progress"},
    {"registry", "labels"},
    {"config"},
    {"params"},
    {"config_file", "tasks"},
    {"data", "model", "multitask"},
    {"engine"},
    {"evaluate"},
    {"train"},
    {"search", "compare", "check"},
    {"launch", "explain"},
    {"cli", "__main__"},
]
"""From the bottom up; a module imports from its own set and from those below."""
BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in NAMES:
            raise ModuleNotFoundError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
import mtrec_ray.MODULE
"""


def imports(path) -> set[str]:
    """First names below the package of everything that a file imports from it, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("mtrec_ray.")}
    return found


def level(part: str) -> int:
    found = [i for i, layer in enumerate(LAYERS) if part in layer]
    assert found, f"mtrec_ray.{part} has no place in LAYERS"
    return found[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    wrong = [name for name in imports(path) if level(name) > level(own)]
    assert not wrong, f"{own} imports from {wrong}, which is above it"


@pytest.mark.parametrize("module", ["config", "multitask.losses", "train.loop", "model.recommender", "engine.plain"])
def test_imports_without_ray_and_deepspeed(module: str) -> None:
    check_imports_without(("ray", "deepspeed"), module)


@pytest.mark.parametrize("module", ["launch.trial", "launch.stacked_trials", "launch.stack"])
def test_the_process_of_a_stacked_trial_needs_no_torch(module: str) -> None:
    check_imports_without(("torch", "transformers", "scipy"), module)


@pytest.mark.parametrize("module", ["shuffle", "settle", "stages", "item_pass", "shards"])
def test_a_task_of_prepare_needs_none_of_the_slow_libraries(module: str) -> None:
    """Each worker would load them for its first task, for seconds."""
    check_imports_without(("torch", "transformers", "sklearn", "scipy"), f"data.preparing.{module}")


def check_imports_without(names: tuple[str, ...], module: str) -> None:
    code = BLOCKED.replace("MODULE", module).replace("NAMES", repr(names))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
