"""The commands. Heavy imports stay inside the functions, so that ``--help`` answers at once."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tasklora import __version__

if TYPE_CHECKING:
    from tasklora.training import DenseRecipe, Recipe

app = typer.Typer(
    name="tasklora",
    help="Multi-task low-rank adaptation: one frozen model, many tasks, one small adapter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
RunPath = Annotated[Path, typer.Argument(help="A run directory, or a saved model's.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder with TASK/{train,tune,validation}.jsonl in place of the hub; of a dense suite, its images'."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key, e.g. --set training.epochs=1. May be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the base model, if the run needs it.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"tasklora {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Multi-task low-rank adaptation: one frozen model, many tasks, one small adapter."""


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file.")] = None,
    data_root: DataRoot = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run directory; must be new or empty.")
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run directory.")] = None,
    extend: Annotated[
        Path | None,
        typer.Option(help="A run whose model gets the recipe's tasks; only what is their own is trained."),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Train a recipe into a run directory: adapter, heads or decoders, results.json."""
    from tasklora.errors import ConfigError

    if (recipe is None) == (resume is None):
        raise ConfigError("give a recipe to train, or --resume RUN to go on with a run.")
    if resume is not None and (set_ or data_root or output or overwrite or extend):
        raise ConfigError("--resume goes on with the run as it was: it takes no other options.")
    quiet_libraries()
    from tasklora.cli.whereabouts import everything_in
    from tasklora.report import score_table
    from tasklora.training import RunDirectory, train_recipe
    from tasklora.training.processes import is_main_process

    if resume is not None:
        directory, plan = resume, RunDirectory(resume).recipe()
    else:
        assert recipe is not None
        plan = _recipe(recipe, set_, data_root)
        if extend is not None:
            if plan.shape == "dense":
                raise ConfigError("--extend is for recipes on text: train all tasks of images in one run.")
            plan = plan.model_copy(update={"extends": str(extend)})
        directory = output or Path(plan.output.directory)
    results, _ = train_recipe(plan, directory, overwrite=overwrite, resume=resume is not None, console=console)
    if not is_main_process():
        return
    console.print(score_table(results.scores, f"{results.method} on {results.suite}", per_task=results.per_task))
    _report([directory])
    console.print(everything_in(directory, plan, results), markup=False, highlight=False, soft_wrap=True)


@app.command()
def compare(
    recipe: RecipePath,
    methods: Annotated[
        str, typer.Option(help="Names, separated by commas; `lora_matched` has the recipe's parameters (text only).")
    ],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    search: Annotated[
        list[str] | None,
        typer.Option(help="A grid, e.g. lr=3e-4,1e-3, or METHOD:lr=… for one method. May be repeated."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The method that others are measured against; `lora`, else the first.")
    ] = None,
    data_root: DataRoot = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The comparison's directory: new, or one to go on with.")
    ] = None,
    overwrite: Overwrite = False,
    set_: Overrides = None,
) -> None:
    """Compare methods on the same rows with the same search; run again to go on."""
    import shlex
    import sys

    quiet_libraries()
    from tasklora.cli.lists import names_of, seeds_of
    from tasklora.report import comparison_tables
    from tasklora.training import compare_methods

    plan = _recipe(recipe, set_, data_root)
    directory = output or Path(plan.output.directory + "-comparison")
    results = compare_methods(
        plan,
        directory,
        names_of(methods),
        seeds_of(seeds),
        search=search or [],
        baseline=baseline,
        overwrite=overwrite,
        command=shlex.join(["tasklora", *sys.argv[1:]]),
        console=console,
    )
    for table in comparison_tables(results):
        console.print(table)
    console.print(
        f"all runs and results.json are in [bold]{directory}[/bold]; read [bold]{_report([directory])}[/bold]"
    )


@app.command()
def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="train, tune, validation or test.")] = "validation",
    data_root: DataRoot = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Score a trained run on a split of its tasks."""
    from typing import get_args

    from tasklora.errors import ConfigError, did_you_mean
    from tasklora.tasks.spec import SPLITS, Split

    if split not in get_args(Split):
        raise ConfigError(f"unknown split '{split}'.{did_you_mean(split, SPLITS)} One of: {', '.join(SPLITS)}.")
    quiet_libraries()
    from tasklora.cli.loading import chosen_per_task
    from tasklora.cli.scoring import score_saved
    from tasklora.report import score_table

    with console.status("loading") as status:
        scores = score_saved(run, split, data_root, trust_remote_code, status.update)  # type: ignore[arg-type]
    if as_json:
        print(scores.model_dump_json(indent=2))
    else:
        own = ", each task at its own best step on tune" if chosen_per_task(run) else ""
        console.print(score_table({split: scores}, f"{run}{own}"))


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(help="A comparison's directory, or one or more runs'.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file; report.html in a single directory by default.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="With several runs: the method that others are measured against.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write what was measured into one HTML page that needs no network."""
    from tasklora.errors import ConfigError

    if len(paths) > 1 and output is None:
        raise ConfigError("say where the report of several runs goes: --output FILE.html.")
    quiet_libraries()
    console.print(f"written: [bold]{_report(paths, output, baseline, overwrite or output is None)}[/bold]")


@app.command()
def predict(
    run: RunPath,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Texts; pairs two by two; a question, then its choices; a query, then documents. Of a run on images: "
            "their files."
        ),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", "-t", help="The task; for a run on images, names separated by commas, else all.")
    ] = "",
    file: Annotated[
        Path | None, typer.Option(help="A .txt (one text per line), .jsonl, .csv or .parquet with the task's columns.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write JSONL here instead of printing.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="For a run on images: the folder for each task's map, IMAGE.TASK.png.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write depth (metres) and normals (unit vectors) as IMAGE.TASK.npy too.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Predict new input with a trained run: labels of texts, or maps of images."""
    quiet_libraries()
    from tasklora.cli.loading import is_dense_run, origin, saved_directory

    if is_dense_run(run):
        from tasklora.cli.predicting_images import check_options, predict_images

        check_options({"--file": file, "--output": output, "--json": as_json or None}, out)
        assert out is not None
        predict_images(run, inputs or [], task, out, raw=raw, overwrite=overwrite, console=console)
        return
    from tasklora.cli.predicting import check_is_text, prediction_records, read_inputs
    from tasklora.errors import OutputError
    from tasklora.evaluation import write_text_whole
    from tasklora.report import prediction_table

    check_is_text(inputs or [], out, raw)
    if output is not None and output.exists() and (not overwrite or output.is_dir()):
        raise OutputError(f"{output} exists already. Choose another --output, or replace a file with --overwrite.")
    if output is not None and not output.parent.is_dir():
        raise OutputError(
            f"no folder {output.parent} to write {output.name} into. Make it, or choose another --output."
        )
    model, about, base = _load(run, trust_remote_code, task)
    spec = about.spec_of(task)
    if said := origin(run, saved_directory(run, task)):
        Console(stderr=True).print(f"{task}: {said}", highlight=False)
    rows = read_inputs(spec, task, inputs or [], file, about.columns().get(task, ()))
    records = prediction_records(model, about, base, task, rows)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if output is not None:
        write_text_whole(output, lines)
        console.print(f"{len(records)} predictions written to [bold]{output}[/bold]")
    elif as_json:
        print(lines, end="")
    else:
        console.print(prediction_table(task, records))


@app.command()
def params(recipe: RecipePath, as_json: AsJson = False, set_: Overrides = None) -> None:
    """Count a recipe's trainable parameters by group, without loading weights."""
    quiet_libraries()
    from tasklora.report import parameter_table
    from tasklora.training import count_recipe_parameters

    counts = count_recipe_parameters(_recipe(recipe, set_, None))
    if as_json:
        print(json.dumps({"trainable": counts.trainable, "groups": counts.groups, "total": counts.total}))
    else:
        console.print(parameter_table(counts, recipe.name))


@app.command()
def methods(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown, as in the docs.")] = False,
) -> None:
    """List the methods and what each can do."""
    from tasklora.report import method_records, method_table, methods_markdown

    if as_json:
        print(json.dumps(method_records(), indent=2, ensure_ascii=False))
    elif markdown:
        print(methods_markdown(), end="")
    else:
        console.print(method_table())


class DemoKind(str, Enum):
    """The demos."""

    TEXT = "text"
    VISION = "vision"


@app.command()
def demo(
    kind: Annotated[DemoKind, typer.Argument(help="Tasks on texts, or several tasks on each image.")] = DemoKind.TEXT,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The comparison's directory; runs/demo or runs/demo-vision by default."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace any run that is there; an earlier demo always is.")
    ] = False,
) -> None:
    """Adapt a pretrained model to several tasks in three ways, and report; offline, in minutes."""
    quiet_libraries()
    if kind is DemoKind.VISION:
        from tasklora.demo.vision import run_vision_demo

        run_vision_demo(console, output or Path("runs/demo-vision"), overwrite)
    else:
        from tasklora.demo.run import run_demo

        run_demo(console, output or Path("runs/demo"), overwrite)


def quiet_libraries() -> None:
    """Silence other libraries' progress bars and deprecation notes on the command line; ours say what happens."""
    import os
    import warnings

    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # it logs what it then raises
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _recipe(path: Path, overrides: list[str] | None, data_root: Path | None) -> Recipe | DenseRecipe:
    from tasklora.training import load_recipe

    recipe = load_recipe(path, overrides)
    if data_root is not None:
        recipe.tasks.data_root = str(data_root)
    return recipe


def _report(paths: list[Path], output: Path | None = None, baseline: str | None = None, overwrite: bool = True) -> Path:
    """Write a report, saying so: drawing takes some seconds."""
    from tasklora.report.page import write_report

    with console.status("writing the report"):
        return write_report(paths, output, baseline=baseline, overwrite=overwrite)


def _load(run: Path, trust_remote_code: bool, task: str | None = None) -> tuple[Any, Any, Any]:
    """Load the model of a run directory, or of a saved model's directory, onto the accelerator if there is one.

    With a task, the model of its own best step, where the run chose one per task.
    """
    from tasklora.cli.loading import load_saved

    with console.status("loading"):
        return load_saved(run, trust_remote_code, task)


from tasklora.cli import exporting as _exporting  # noqa: E402, F401  (it adds its commands)
from tasklora.cli import starting as _starting  # noqa: E402, F401
