"""``tasklora init``: a recipe out of one's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasklora.cli.app import Overwrite, app, console, quiet_libraries

if TYPE_CHECKING:
    from rich.table import Table

    from tasklora.tasks.guessing.finding import Proposal
    from tasklora.tasks.guessing.roles import Said

MOST_SHOWN = 3  # tasks whose every guess is shown with its reason; of more, a line each


@app.command()
def init(
    data: Annotated[
        list[str],
        typer.Argument(
            help="Tables (.csv, .tsv, .jsonl, .json, .parquet), folders of them or of `datasets`, or hub:NAME[:CONFIG]."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    label: Annotated[
        list[str] | None, typer.Option(help="The label's column: COLUMN, or TASK:COLUMN for one of several tasks.")
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option(help="The column of texts, or two: A or A,B, or TASK:A,B for one of several.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="The kind of task: KIND, or TASK:KIND for one of several tasks.")
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(help="heads on an encoder, or text_to_text with a decoder, which tasks with texts to write need."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The base: a public name or a folder. By default all-MiniLM-L6-v2, or SmolLM2-135M for text."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="How it is adapted; see `tasklora methods`.")] = "mtl_lora",
    overwrite: Overwrite = False,
) -> None:
    """Look at your own files, guess each task, and write a recipe that trains them."""
    import shlex
    import sys

    from tasklora.errors import ConfigError, OutputError, did_you_mean, listing

    if output.suffix not in (".yaml", ".yml"):
        raise OutputError(f"--output {output} is to be a recipe: give it a name that ends in .yaml.")
    if output.exists() and (not overwrite or output.is_dir()):
        raise OutputError(f"{output} exists already. Choose another --output, or replace a file with --overwrite.")
    if not output.parent.is_dir():
        raise OutputError(
            f"no folder {output.parent} to write {output.name} into. Make it, or choose another --output."
        )
    quiet_libraries()
    import yaml

    from tasklora.evaluation import write_text_whole
    from tasklora.tasks import training_method
    from tasklora.tasks.base_model import local_config
    from tasklora.tasks.guessing.finding import find_tasks, propose
    from tasklora.tasks.whole_files import reason
    from tasklora.training.first_recipe import first_recipe
    from tasklora.training.first_sizes import FIRST_RUNS, check_view, sizes_of, view_of
    from tasklora.training.recipes import parse_recipe

    training_method(method)
    config = None if model is None else local_config(model)
    if view is not None and view not in FIRST_RUNS:
        raise ConfigError(
            f"--view: unknown view '{view}'.{did_you_mean(view, FIRST_RUNS)} One of: {listing(FIRST_RUNS)}."
        )
    places, passed = find_tasks(data)
    said = what_was_said(list(places), {"label": label or [], "inputs": inputs or [], "kind": kind or []})
    with console.status("reading") as status:
        proposals = propose(places, said, status.update)
    command = shlex.join(["tasklora", *sys.argv[1:]])
    view = view or view_of(proposals, config)
    check_view(proposals, view)
    text = first_recipe(proposals, view, model, method, f"runs/{output.stem}", command, config)
    text = text.replace("THIS_FILE", str(output))
    parse_recipe(yaml.safe_load(text), str(output)).task_specs()
    try:
        write_text_whole(output, text)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {reason(error)}. Choose another --output.") from error
    tables = [guess_table(p, view) for p in proposals] if len(proposals) <= MOST_SHOWN else [tasks_table(proposals)]
    for table in tables:
        console.print(table)
    if passed:
        console.print(
            f"passed over, no tables: {', '.join(passed[:5])}{' …' if len(passed) > 5 else ''}", highlight=False
        )
    sizes = sizes_of(proposals, view)
    first = f"a first run makes {sizes.steps:,} steps of {sizes.batch} rows"
    console.print(f"written: [bold]{output}[/bold], with the reasons; {first}")
    console.print(f"next: [bold]tasklora train {shlex.quote(str(output))}[/bold]", highlight=False)


def what_was_said(tasks: Sequence[str], options: Mapping[str, Sequence[str]]) -> dict[str, Said]:
    """Return what the options say of each task.

    Args:
        tasks: names of the tasks.
        options: "label", "inputs" and "kind" → values, each ``VALUE`` or ``TASK:VALUE``.

    Raises:
        ConfigError: if an option does not say which of several tasks it is for, or says two things of one.
    """
    from tasklora.errors import ConfigError, did_you_mean, listing
    from tasklora.tasks.guessing.roles import Said

    said: dict[str, dict[str, str]] = {task: {} for task in tasks}
    for option, values in options.items():
        for value in values:
            task, colon, rest = value.partition(":")
            if not (colon and task in said):
                if len(tasks) > 1:
                    near = did_you_mean(task, tasks) if colon else ""
                    raise ConfigError(
                        f"--{option} {value}: say which task it is for, as in --{option} {tasks[0]}:{rest or value}."
                        f"{near} Tasks: {listing(tasks)}."
                    )
                task, rest = tasks[0], value
            if option in said[task]:
                raise ConfigError(f"--{option} is given twice for task '{task}': {said[task][option]} and {rest}.")
            said[task][option] = rest
    return {
        task: Said(
            kind=given.get("kind"),
            label=given.get("label"),
            inputs=tuple(name.strip() for name in given["inputs"].split(",")) if "inputs" in given else None,
        )
        for task, given in said.items()
    }


def guess_table(proposal: Proposal, view: str) -> Table:
    """Return a table of what was guessed of a task, with the reasons."""
    from rich.markup import escape
    from rich.table import Table

    from tasklora.errors import listing
    from tasklora.training.first_sizes import settings_in

    guess = proposal.guess
    table = Table(title=f"{proposal.task}: {proposal.place.shown}", title_justify="left", title_style="bold")
    for column in ("", "guessed", "why"):
        table.add_column(column, overflow="fold")
    for key, value in settings_in(guess, view).items():
        shown = listing(map(str, value), 5) if isinstance(value, list) else str(value)
        if key not in ("metrics",):
            table.add_row(key, escape(shown), escape(guess.why.get(key, "")))
    rows = ", ".join(f"{split} {count:,}" for split, count in proposal.rows.items())
    held = (
        ""
        if "validation" in proposal.rows
        else f"{proposal.held_out:,} of them {'is' if proposal.held_out == 1 else 'are'} held out for validation"
    )
    table.add_row("rows", rows, held)
    if guess.left_out:
        why = "; ".join(f"{name}: {why}" for name, why in guess.left_out.items())
        table.add_row("not used", escape(listing(guess.left_out, 5)), escape(why))
    for note in proposal.notes:
        table.add_row("note", "", escape(note))
    return table


def tasks_table(proposals: Sequence[Proposal]) -> Table:
    """Return a table of several tasks, a line each."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="tasks", title_justify="left", title_style="bold")
    for column in ("task", "kind", "reads", "label", "primary", "rows"):
        table.add_column(column, overflow="fold")
    for proposal in proposals:
        settings = proposal.guess.settings
        kind = f"{settings['kind']}, {len(settings['labels'])} classes" if "labels" in settings else settings["kind"]
        rows = ", ".join(f"{split} {count:,}" for split, count in proposal.rows.items())
        cells = [proposal.task, kind, ", ".join(settings["inputs"]), settings["label"], settings["primary"], rows]
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table
