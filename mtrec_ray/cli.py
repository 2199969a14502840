"""The command line: one verb per stage. `jobs/*.py` run the same functions under `ray job submit`.

Results (a config, a path) go to stdout, progress and messages to stderr. Exit codes: 0 done; 2 a mistake in what the
user gave, or workers lost too often, told in one message; 1 a defect, with its traceback, or a comparison some of whose
trainings failed, or a check that found errors in the data. Ray and torch are imported inside the verbs, so that
`--help` answers at once and a wrong config is refused before either starts.
"""

import inspect
import os
import re
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
  mtrec explain                   what a config may hold: parts, keys, names
  mtrec train run.yaml            prepare (cached), train, evaluate, report
  mtrec train run.yaml --set name=longer --set train.epochs=5

No logs at hand? `mtrec quickstart` makes some and runs everything on them.

\b
The same on a cluster:
  ray job submit --working-dir . -- python jobs/train.py run.yaml
"""


class _Application(typer.Typer):
    """The docstrings of verbs are their help."""

    def command(self, *arguments: Any, **settings: Any) -> Callable[[Any], Any]:
        add = super().command
        return lambda verb: add(*arguments, help=_filled(inspect.cleandoc(verb.__doc__)), **settings)(verb)


def _filled(text: str) -> str:
    """Paragraphs as one line each, which the terminal breaks; those that begin with \\b stay as they are.

    Brackets stay, too: to Rich `[sum]` would be a style.
    """
    paragraphs = [
        part.removeprefix("\b\n") if part.startswith("\b\n") else part.replace("\n", " ") for part in text.split("\n\n")
    ]
    return re.sub(r"\[(?=[a-z])", r"\\[", "\n\n".join(paragraphs))


def _application(**settings: Any) -> _Application:
    return _Application(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


app = _application(help=_filled(_OVERVIEW), no_args_is_help=True)

ConfigArgument = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="The run's YAML file.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The same as CONFIG.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as train.epochs=5; may be repeated."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what Ray and DeepSpeed print themselves.")]


@app.command()
def sample(
    folder: Annotated[str, typer.Argument(help="Folder or URL for the logs, the tables and a config.")],
    scenario: Annotated[
        str,
        typer.Option(help="ecommerce, ads, video, music, news, social, item_to_item; quickstart is the smallest."),
    ] = "quickstart",
    users: Annotated[int, typer.Option(min=1, max=10**9, help="Number of users.")] = 2000,
    items: Annotated[int, typer.Option(min=1, max=10**8, help="Number of items.")] = 500,
    days: Annotated[int, typer.Option(min=1, max=20_000, help="Days that the logs span.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    shards: Annotated[
        int | None, typer.Option(min=1, help="quickstart: Parquet files, one per range of days; at most 8 by default.")
    ] = None,
    feedback_files: Annotated[
        bool, typer.Option("--feedback-files", help="Feedback in files of its own, with the impression's id.")
    ] = False,
    bots: Annotated[float, typer.Option(min=0, max=1, help="Share of the users that are programs.")] = 0.0,
    figures: Annotated[
        bool, typer.Option(help="Judge the truth, the ideal observer and simple methods; holds all rows in memory.")
    ] = True,
    worth: Annotated[
        bool, typer.Option("--worth", help="Judge also the observer without text, ids and history.")
    ] = False,
) -> None:
    """Write generated logs: users with tastes, items whose text tells part of the truth, several feedback signals.

    A scenario has more of what real logs have: a logging policy with its propensities, delays, sessions, drift, new
    users and items, domains, graphs; and it tells what can be known of it at best, and what simple methods know.

    \b
    Examples:
      mtrec sample my_logs --users 500 --days 10
      mtrec train my_logs/config.yaml
      mtrec sample shop --scenario ecommerce --users 3000
      mtrec train shop/run.yaml
    """
    from mtrec_ray.data.sample import QUICKSTART_SCENARIO, Size, scenario_named, write_sample, write_scenario

    if scenario == QUICKSTART_SCENARIO:
        if feedback_files or bots or worth:
            raise ConfigError("--feedback-files, --bots and --worth belong to a scenario; add --scenario ecommerce.")
        summary = write_sample(folder, seed=seed, users=users, items=items, days=days, shards=shards or min(8, days))
        say(f"sample: {summary.rows:,} rows; the true click probabilities have AUC {summary.oracle_auc:.3f}")
        print(f"{folder.rstrip('/')}/config.yaml")
        return
    if shards is not None:
        raise ConfigError(f"--shards belongs to scenario quickstart; {scenario} is partitioned by hour.")
    if worth and not figures:
        raise ConfigError("--worth needs the figures; leave out --no-figures.")
    size = Size(users=users, items=items, days=days, seed=seed, bots=bots)
    generated = write_scenario(folder, scenario_named(scenario), size, feedback_files, figures, worth)
    rates = ", ".join(f"{name} {rate:.1%}" for name, rate in generated.rates.items())
    say(f"sample: {generated.rows:,} rows in {generated.requests:,} requests; {rates}")
    if figures:
        from rich.console import Console

        from mtrec_ray.data.sample.summary import figures_table

        Console().print(figures_table(generated))
    print(f"{folder.rstrip('/')}/run.yaml")


@app.command()
def init(
    logs: Annotated[list[str], typer.Argument(metavar="LOGS...", help="Files, folders, globs or URLs of the logs.")],
    items: Annotated[str | None, typer.Option(help="Table of items: one row per item, with its text.")] = None,
    users: Annotated[str | None, typer.Option(help="Table of users: one row per user.")] = None,
    feedback: Annotated[
        str | None, typer.Option(help="Files, folder, glob or URL of feedback that the logs do not hold themselves.")
    ] = None,
) -> None:
    """Look at the columns of your logs and print a config; what was assumed is said on stderr.

    \b
    Examples:
      mtrec init logs/*.parquet --items items.csv > run.yaml
      mtrec init shop/logs --feedback shop/feedback --items shop/items.parquet > run.yaml
    """
    from mtrec_ray.data.inspection.inspect import propose_config

    text, assumptions = propose_config(logs, items, users, feedback)
    for assumption in assumptions:
        say(f"Assumed: {assumption}")
    print(text, end="")


@app.command()
def explain(
    what: Annotated[
        str | None, typer.Argument(metavar="WHAT", help="A part or a key of a config, or a name that one gives.")
    ] = None,
) -> None:
    """Say what a config may hold: its keys with types and defaults, and the kinds, towers, methods ... that it names.

    Without WHAT a line for each part of a config, each choice and each name.

    \b
    Examples:
      mtrec explain
      mtrec explain train
      mtrec explain tasks.params
      mtrec explain ple
    """
    from mtrec_ray.explain import text

    print(text.overview() if what is None else text.explain(what))


@app.command()
def check(
    config_or_logs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG_OR_LOGS...", help="A run's YAML file; or files, folders, URLs of logs."),
    ],
    overrides: Overrides = None,
    items: Annotated[str | None, typer.Option(help="With logs: table of items.")] = None,
    users: Annotated[str | None, typer.Option(help="With logs: table of users.")] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Most rows to look at, whole users by a hash of their id; 500,000 by default."),
    ] = None,
    report: Annotated[str | None, typer.Option(help="Where the page goes; <name>-check.html by default.")] = None,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write the findings there, too.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Say what looks too good in the logs before a split is trusted: leaks, skews, drift; with rows to look at.

    Looks at what training would see: candidates, labels and split of the config, and the columns it names. Logs without
    a config are read with the one that `mtrec init` proposes, and their other columns are looked at, too. Writes a page
    with the findings and a profile of the data. Exit code 1: there is an error among the findings.

    \b
    Examples:
      mtrec check run.yaml
      mtrec check logs/*.parquet --items items.csv --json findings.json
    """
    _be_verbose(verbose)
    from mtrec_ray.check.check import check
    from mtrec_ray.check.proposed import run_of
    from mtrec_ray.check.reading import MOST_ROWS
    from mtrec_ray.check.report import lines, write_report

    run, unused, assumed = run_of(config_or_logs, items, users, overrides or [])
    page = report or f"{run.name}-check.html"
    _refuse_vanishing({"--report": page} | ({} if json_path is None else {"--json": json_path}))
    for sentence in assumed:
        say(f"Assumed: {sentence}")
    checked = check(run, unused, rows or MOST_ROWS)
    write_report(checked, page, json_path, assumed)
    print("\n".join([*lines(checked), page]))
    if checked.failed:
        raise typer.Exit(1)


@app.command()
def prepare(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    overrides: Overrides = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then delete the pieces that no prepared folder refers to.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Read the logs and write encoded requests; the same inputs and settings are prepared only once.

    Of new or changed files only what they change is prepared. --prune deletes what only deleted prepared folders used.

    \b
    Examples:
      mtrec prepare run.yaml
      mtrec prepare run.yaml --prune
      ray job submit --working-dir . -- python jobs/prepare.py run.yaml
    """
    run = _load(config, config_option, overrides, verbose)
    from mtrec_ray.data.prepare import prepare
    from mtrec_ray.data.preparing import prune as pruning
    from mtrec_ray.launch.jobs import located
    from mtrec_ray.launch.session import ray_session
    from mtrec_ray.train.checks import check_parts

    check_parts(run)  # what training would refuse is refused before hours of preparing
    with ray_session(run.cluster):
        print(prepare(located(run)).path)
    if prune:
        deleted, kept = pruning.prune(run.data.prepared_dir)
        say(f"{deleted:,} pieces that no prepared folder refers to were deleted, {kept:,} stay")


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

    \b
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
    _refuse_vanishing({"cluster.storage": run.cluster.storage, "data.prepared_dir": run.data.prepared_dir})


def _refuse_vanishing(paths: dict[str, str]) -> None:
    """A submitted job runs in a copy of the working directory that Ray removes; what it writes there is lost."""
    if "working_dir_files" not in Path.cwd().parts:
        return
    for key, path in paths.items():
        if not Path(path).is_absolute() and "://" not in path:
            option = key if key.startswith("--") else f"--set {key}"
            raise ConfigError(
                f"{key} is '{path}': in a submitted job a relative path lies in Ray's temporary copy of the working "
                f"directory and is lost. Give a URL or a path that all nodes share: {option}=s3://bucket/folder."
            )
