"""Writes the generated parts of the README and the docs, or checks that they are fresh (``--check``).

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end generated -->``.
"""

from __future__ import annotations

import json
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import typer

from tasklora.cli.app import app
from tasklora.report import methods_markdown
from tasklora.training import recipe as recipes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def cli() -> str:
    """Return every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(f"{p.name.upper()}" if p.required else f"[{p.name.upper()}]" for p in arguments)
        parts.append(f"## tasklora {name}\n\n    tasklora {name} {usage}".rstrip() + f"\n\n{command.help.strip()}\n")
        rows = [f"| `{_flag(p)}` | {p.help or ''} |" for p in command.params if p.name != "help"]
        if rows:
            parts.append("| | |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _flag(parameter: Any) -> str:
    return parameter.name.upper() if parameter.param_type_name == "argument" else ", ".join(parameter.opts)


def recipe_keys() -> str:
    """Return every key of a recipe with type, default and meaning."""
    sections = {
        "model": recipes.ModelSection,
        "tasks": recipes.TasksSection,
        "tasks.options.TASK": recipes.TaskOptions,
        "training": recipes.TrainingSection,
        "training.mixing": recipes.MixingSection,
        "output": recipes.OutputSection,
    }
    parts = []
    for name, section in sections.items():
        summary = (section.__doc__ or "").split("\n\n")[0].strip()
        parts.append(f"## {name}\n\n{summary}\n\n| key | type | default | |\n| --- | --- | --- | --- |")
        meanings = _attributes(section.__doc__ or "")
        for key, field in section.model_fields.items():
            default = "required" if field.is_required() else f"`{_default(field)}`"
            parts.append(f"| `{key}` | {_type(field.annotation)} | {default} | {meanings.get(key, '')} |")
        parts.append("")
    parts.append(
        "## method\n\n`name`, and the options of that method's config: see [methods.md](methods.md). "
        "`target_modules` is `all-linear` by default here; a pooler is left out.\n"
    )
    return "\n".join(parts)


def _attributes(docstring: str) -> dict[str, str]:
    found: dict[str, str] = {}
    key = None
    for line in docstring.partition("Attributes:")[2].splitlines():
        entry = re.match(r"\s+(\w+): (.*)", line)
        if entry:
            key, found[entry.group(1)] = entry.group(1), entry.group(2)
        elif key and line.strip():
            found[key] += " " + line.strip()
    return {name: re.sub(r":class:`[\w.]*?(\w+)`", r"`\1`", text) for name, text in found.items()}


def _default(field: Any) -> str:
    default = field.default
    if isinstance(default, pydantic.BaseModel):
        return "see below"
    return "null" if default is None else json.dumps(default)


def _type(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " \\| ".join(str(value) for value in typing.get_args(annotation))
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(arguments[0])
    if typing.get_origin(annotation) in (dict, list):
        return typing.get_origin(annotation).__name__
    if arguments:
        return " \\| ".join(_type(argument) for argument in arguments if argument is not type(None))
    return str(getattr(annotation, "__name__", annotation))


def glue() -> str:
    """Return the scores of the kept GLUE runs."""
    return _score_table("glue-minilm-*.json")


def demo() -> str:
    """Return the scores of the kept demo run."""
    return _score_table("demo-*.json")


def _score_table(pattern: str) -> str:
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(pattern))]
    if not runs:
        return "No run is kept yet.\n"
    tasks = runs[0]["scores"]["validation"]["tasks"]
    untrained = ["untrained"] if runs[0]["untrained"] else []
    header = ["task", "metric", "rows", *untrained, *(run["method"] for run in runs)]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for name, task in tasks.items():
        cells = [name, task["primary"], str(task["rows"])]
        cells += [_score(_task(runs[0], "untrained", name)) for _ in untrained]
        lines.append("| " + " | ".join(cells + [_score(_task(run, "scores", name)) for run in runs]) + " |")
    averages = [_score(runs[0]["untrained"]["validation"]["average"]) for _ in untrained]
    averages += [_score(run["scores"]["validation"]["average"]) for run in runs]
    lines.append("| **average** | | | " + " | ".join(averages) + " |")
    trained = [f"{run['parameters']['trainable']:,}" for run in runs]
    lines.append("| trainable parameters | | | " + "| " * len(untrained) + " | ".join(trained) + " |")
    lines.append("")
    for run in runs:
        rows = sorted(set(run["training"]["rows_per_task"].values()))
        lines.append(
            f"`{run['method']}` on {run['base'].rpartition('/')[2]}: one run, seed {run['seed']}, "
            f"{rows[0] if len(rows) == 1 else f'{rows[0]} to {rows[-1]}'} training rows a task, "
            f"{run['training']['steps']} steps; `{run['command']}` at commit `{run['commit'][:12]}`."
        )
    return "\n".join(lines) + "\n"


def _task(run: Any, which: str, name: str) -> float | None:
    split = run[which].get("validation")
    return split["tasks"][name]["score"] if split else None


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods_markdown,
    "cli": cli,
    "recipes": recipe_keys,
    "glue": glue,
    "demo": demo,
}


def main() -> None:
    """Write or check every file that has generated parts."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        fresh = PART.sub(lambda part: part[1] + "\n" + PARTS[part[2]]().strip() + "\n\n" + part[3], text)
        if fresh != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if not check:
                path.write_text(fresh, encoding="utf-8")
    if check and stale:
        sys.exit(f"stale generated parts in {', '.join(stale)}: run `make docs`")
    print("generated parts are fresh" if not stale else f"written: {', '.join(stale)}")


if __name__ == "__main__":
    main()
