"""The command line: one verb per stage. `jobs/*.py` run the same functions under `ray job submit`.

Results (a config, a path) go to stdout, progress and messages to stderr. Exit codes: 0 done; 2 a mistake in what the
user gave, or workers lost too often, told in one message; 1 a defect, with its traceback, or a comparison some of whose
trainings failed. Ray and torch are imported inside the verbs, so that `--help` answers at once and a wrong config is
refused before either starts.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtrec_ray.errors import ConfigError, UserError
from mtrec_ray.progress import say

if TYPE_CHECKING:
    from mtrec_ray.config import Run

QUICKSTART, SAMPLE_LOGS = Path("configs/quickstart.yaml"), "sample_logs"

_OVERVIEW = """Train multi-task recommenders on a shared language-model backbone, from interaction logs, on Ray.

A run is one YAML file:

\b
  mtrec init LOGS > run.yaml      look at the logs, write a config
  mtrec train run.yaml            prepare (cached), train, evaluate, report
  mtrec train run.yaml --set name=longer --set train.epochs=5

No logs at hand? `mtrec quickstart` makes some and runs everything on them.

\b
The same on a cluster:
  ray job submit --working-dir . -- python jobs/train.py run.yaml
"""


def _application(**settings: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


app = _application(help=_OVERVIEW, no_args_is_help=True)

ConfigArgument = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="The run's YAML file.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The same as CONFIG.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as train.epochs=5; may be repeated."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what Ray and DeepSpeed print themselves.")]


@app.command()
def sample(
    folder: Annotated[str, typer.Argument(help="Folder or URL for the logs, the table of items and a config.")],
    users: Annotated[int, typer.Option(min=1, help="Number of users.")] = 2000,
    items: Annotated[int, typer.Option(min=1, help="Number of items.")] = 500,
    days: Annotated[int, typer.Option(min=1, help="Days that the logs span.")] = 30,
    shards: Annotated[int, typer.Option(min=1, help="Parquet files, one per range of days.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write generated logs: users with tastes, items whose text tells part of the truth, several feedback signals.

    \b
    Example:
      mtrec sample my_logs --users 500 --days 10
      mtrec train my_logs/config.yaml
    """
    from mtrec_ray.data.sample import write_sample

    summary = write_sample(folder, seed=seed, users=users, items=items, days=days, shards=shards)
    say(f"sample: {summary.rows:,} rows; the true click probabilities have AUC {summary.oracle_auc:.3f}")
    print(f"{folder.rstrip('/')}/config.yaml")


@app.command()
def init(
    logs: Annotated[list[str], typer.Argument(metavar="LOGS...", help="Files, folders, globs or URLs of the logs.")],
    items: Annotated[str | None, typer.Option(help="Table of items: one row per item, with its text.")] = None,
    users: Annotated[str | None, typer.Option(help="Table of users: one row per user.")] = None,
) -> None:
    """Look at the columns of your logs and print a config; what was assumed is said on stderr.

    \b
    Example:
      mtrec init logs/*.parquet --items items.csv > run.yaml
    """
    from mtrec_ray.data.inspection.inspect import propose_config

    text, assumptions = propose_config(logs, items, users)
    for assumption in assumptions:
        say(f"Assumed: {assumption}")
    print(text, end="")


@app.command()
def prepare(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Read the logs and write encoded requests; the same inputs and settings are prepared only once.

    \b
    Examples:
      mtrec prepare run.yaml
      ray job submit --working-dir . -- python jobs/prepare.py run.yaml
    """
    run = _load(config, config_option, overrides, verbose)
    from mtrec_ray.data.prepare import prepare
    from mtrec_ray.launch.session import ray_session

    with ray_session(run.cluster):
        print(prepare(run).path)


@app.command()
def pretrain(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Train the backbone on the text of the train period, without labels; `train` starts from it.

    \b
    Example:
      mtrec pretrain run.yaml --set pretrain.epochs=5
    """
    run = _load(config, config_option, overrides, verbose)
    from mtrec_ray.launch.pretrain import pretrain

    print(pretrain(run))


@app.command()
def train(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run of the same name.")] = False,
    verbose: Verbose = False,
) -> None:
    """Prepare if need be, train the adapter and the towers, evaluate, and write the report.

    \b
    Examples:
      mtrec train run.yaml
      mtrec train run.yaml --set name=wide --set 'towers.hidden=[128, 64]'
      ray job submit --working-dir . -- python jobs/train.py run.yaml
    """
    run = _load(config, config_option, overrides, verbose)
    from mtrec_ray.launch.train import train

    print(train(run, overwrite=overwrite))


@app.command()
def tune(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished search.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier search of the same name.")] = False,
    verbose: Verbose = False,
) -> None:
    """Search values of the config, as `tune.space` says: task weights, learning rates, ranks, widths.

    Writes every trial, a report with the trade-offs between tasks, and best.yaml, which `mtrec train` runs as it is.

    \b
    Examples:
      mtrec tune run.yaml --set 'tune.space={tasks.like.weight: {loguniform: [0.1, 10]}}' --set tune.trials=16
      mtrec tune run.yaml --resume
      ray job submit --working-dir . -- python jobs/tune.py run.yaml
    """
    run = _load(config, config_option, overrides, verbose)
    from mtrec_ray.launch.tune import tune

    print(tune(run, resume=resume, overwrite=overwrite, config_path=str(config or config_option)))


@app.command()
def compare(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier comparison of the same name.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Does learning the tasks together pay? Train each task alone and all together, over seeds, and compare.

    `compare` in the config says what: methods that balance the tasks (sum is the plain one), variants of the config,
    seeds. Writes a run for each training and a report: differences to each task alone with intervals, the average,
    time and memory, how far the tasks' gradients pull apart. An interrupted comparison goes on when its command is
    repeated. Exit code 1: some training failed; the report says which, and compares the others.

    
    Examples:
      mtrec compare run.yaml --set name=pays
      mtrec compare run.yaml --set name=pays --set compare.seeds=5 --set 'compare.methods=[sum, uncertainty, cagrad]'
      mtrec compare run.yaml --set name=pays --set 'compare.variants={ple: {towers.kind: ple}}'
      ray job submit --working-dir . -- python jobs/compare.py run.yaml --set name=pays
    """
    run = _load(config, config_option, overrides, verbose)
    from mtrec_ray.launch.compare import compare

    done = compare(run, overwrite=overwrite)
    print(done.table)
    print("\n".join(["", *done.sentences, ""]))
    print(done.report)
    if done.failed:
        what = "1 training" if done.failed == 1 else f"{done.failed} trainings"
        say(f"Error: {what} failed, as the report tells. The same command tries once more.")
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run, as runs/NAME.")],
    verbose: Verbose = False,
) -> None:
    """Score a run's test data once more and rewrite its metrics, predictions and report.

    \b
    Example:
      mtrec evaluate runs/quickstart
    """
    _be_verbose(verbose)
    from mtrec_ray.launch.evaluate import evaluate

    print(evaluate(run))


@app.command()
def quickstart(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Everything on generated logs, in one Ray session: sample, prepare, pretrain, train, evaluate.

    \b
    Example (from a checkout, which has configs/quickstart.yaml):
      mtrec quickstart --set train.epochs=1
    """
    run = _load(QUICKSTART, None, overrides, verbose)
    from mtrec_ray.data.sample import write_sample
    from mtrec_ray.launch.train import train

    if not Path(SAMPLE_LOGS).exists():
        write_sample(SAMPLE_LOGS, users=700, items=300, days=20)
    print(f"{train(run, overwrite=True)}/report.html")


def main() -> None:
    """Entry point of `mtrec`."""
    _run(app)


def job(verb: Callable[..., None]) -> None:
    """Entry point of `jobs/<verb>.py`: the verb alone, with the same options, messages and exit codes."""
    application = _application()
    application.command()(verb)
    _run(application)


def _run(application: typer.Typer) -> None:
    try:
        application()
    except UserError as error:
        say(f"Error: {error}")
        sys.exit(2)


def _load(config: Path | None, option: Path | None, overrides: list[str] | None, verbose: bool) -> "Run":
    if (config is None) == (option is None):
        raise ConfigError(
            "Give one config: `mtrec train run.yaml`, or --config run.yaml. `mtrec init LOGS` writes one."
        )
    _be_verbose(verbose)
    from mtrec_ray.config_file import load

    run = load(config or option or "", overrides or [])
    _refuse_vanishing_paths(run)
    return run


def _be_verbose(verbose: bool) -> None:
    if verbose:
        os.environ["MTREC_VERBOSE"] = "1"


def _refuse_vanishing_paths(run: "Run") -> None:
    """A submitted job runs in a copy of the working directory that Ray removes; what it writes there is lost."""
    if "working_dir_files" not in Path.cwd().parts:
        return
    for key, path in (("cluster.storage", run.cluster.storage), ("data.prepared_dir", run.data.prepared_dir)):
        if not Path(path).is_absolute() and "://" not in path:
            raise ConfigError(
                f"{key} is '{path}': in a submitted job a relative path lies in Ray's temporary copy of the working "
                f"directory and is lost. Give a URL or a path that all nodes share: --set {key}=s3://bucket/folder."
            )
