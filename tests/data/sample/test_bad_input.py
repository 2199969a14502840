"""`mtrec sample` with any arguments: logs that `mtrec prepare` would read, or one message and nothing half-written."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.config_file import load
from mtrec_ray.data.reading.logs import check_log, find_files
from mtrec_ray.data.sample import SCENARIOS
from tests.data.bad_input.outcome import run
from tests.data.test_bad_input import EXAMPLES, SLOW

NUMBERS = {
    "--users": [1, 2, 30],
    "--items": [1, 99, 100, 130],
    "--days": [1, 4, 5, 7],
    "--seed": [0, 2**80],
    "--shards": [1, 9],
    "--bots": [0.0, 0.5, 1.0],
}
STRANGE = ["0", "-1", "1.5", "nan", "inf", "x", "", "9" * 30, "1e9"]
OPTIONS = st.fixed_dictionaries(
    {"--no-figures": st.just("")}, optional={k: st.sampled_from(v) for k, v in NUMBERS.items()}
)


@settings(max_examples=EXAMPLES or 20, derandomize=not EXAMPLES, suppress_health_check=SLOW)
@given(
    st.sampled_from([*SCENARIOS, "quickstart", "quickstart", "ecomerce", ""]),
    OPTIONS,
    st.sampled_from(["--no-figures", "--figures", "--worth", "--feedback-files"]),
    st.sampled_from(["new", "new", "new", "deep/er", "a file", "a file/below", "foreign", "a\0b"]),
    st.none() | st.tuples(st.sampled_from(["--items", "--days", "--bots", "--seed"]), st.sampled_from(STRANGE)),
)
def test_sample_writes_a_log_or_refuses(
    scenario: str,
    options: dict[str, float | str],
    flag: str,
    folder: str,
    strange: tuple[str, str] | None,
) -> None:
    arguments = ["sample", folder, "--scenario", scenario, flag]
    given_options = {"--users": 30, "--items": 100, "--days": 5} | options | dict([strange] if strange else [])
    for name, value in given_options.items():
        arguments += [name, str(value)]
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home), pytest.MonkeyPatch.context() as patch:
        Path("a file").write_text("here")
        Path("foreign/logs").mkdir(parents=True)
        Path("foreign/logs/mine.csv").write_text("user,item")
        code, out, err = run(arguments, patch)
        assert "Traceback" not in err
        assert not list(Path(home).rglob("*.tmp"))
        assert Path("foreign/logs/mine.csv").exists()
        if code == 0:
            config = load(out.splitlines()[-1])
            check_log(find_files(config.data), config)
        else:
            assert code == 2
            assert out == ""
            assert "Error" in err
