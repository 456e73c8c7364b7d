"""Writes the generated parts of the README and the docs, or checks that they are fresh (``--check``).

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end generated -->``.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import typing
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import features
import pydantic
import typer
from comparison_tables import RESULTS, comparison, dense_comparison, dense_summary, of_kept, summary, table
from matplotlib.figure import Figure

from tasklora.cli.app import app
from tasklora.report import figures, methods_markdown, sizes
from tasklora.report.svg import Picture, legend, picture, series
from tasklora.tasks import METRICS
from tasklora.training import dense_recipe as dense
from tasklora.training import recipe as recipes
from tasklora.training.balancing import BALANCING_METHODS, NOT_OFFERED, BalancingSection
from tasklora.training.mixing_section import ScheduleSection
from tasklora.vision.augment import Augmentation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import goals
from harness import Measurement, Spread

ROOT = Path(__file__).resolve().parents[1]
PRETRAINING = ROOT / "src" / "tasklora" / "vision" / "swin_scenes" / "pretraining.json"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def task_metrics() -> str:
    """Return every metric of text tasks with the kinds of tasks that it is for."""
    rows = []
    for name, metric in METRICS.items():
        kinds = ", ".join(f"`{kind}`" for kind in metric.kinds) + (" with two classes" if metric.two_classes else "")
        rows.append([f"`{name}`", kinds, metric.title, "higher" if metric.higher_is_better else "lower"])
    header = ["metric", "kinds", "", "better"]
    lines = ["| " + " | ".join(header) + " |", "| --- | --- | --- | --- |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


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
        "tasks.define.TASK": recipes.OwnTask,
        "tasks.options.TASK": recipes.TaskOptions,
        "training": recipes.TrainingSection,
        "training.mixing": recipes.MixingSection,
        "training.mixing.schedule": ScheduleSection,
        "training.balancing": BalancingSection,
        "training.gradient_cosines": recipes.GradientCosinesSection,
        "output": recipes.OutputSection,
    }
    return (
        _sections(sections, "##")
        + "\n## method\n\n`name`, and the options of that method's config: see [methods.md](methods.md). "
        "`target_modules` is `all-linear` by default here; a pooler is left out.\n"
    )


def dense_recipe_keys() -> str:
    """Return the keys of a dense recipe's sections, where they are others than those of a recipe on text."""
    sections = {
        "model": dense.DenseModelSection,
        "tasks": dense.DenseTasksSection,
        "tasks.options.TASK": dense.DenseTaskOptions,
        "training": dense.DenseTrainingSection,
        "training.augmentation": Augmentation,
    }
    return _sections(sections, "###")


def balancing_methods() -> str:
    """Return every balancing method with its options, and what of TorchJD is left out and why."""
    parts = []
    for balances, what in (("losses", "Balancing losses"), ("gradients", "Balancing gradients")):
        rows = [
            [f"`{method.name}`", method.title, method.about, _options(method.options), method.source]
            for method in BALANCING_METHODS.values()
            if method.balancer.balances == balances
        ]
        parts.append(f"**{what}**\n\n" + _text_table(["method", "", "what it does", "options", "source"], rows))
    left_out = "; ".join(f"`{name}` ({why})" for name, why in NOT_OFFERED.items())
    return "\n".join(parts) + f"\nNot offered of TorchJD: {left_out}.\n"


def _options(record: type[pydantic.BaseModel]) -> str:
    meanings = _attributes(record.__doc__ or "")
    said = []
    for key, field in record.model_fields.items():
        default = "required" if field.is_required() else f"default {_default(field)}"
        said.append(f"`{key}` ({default}): {meanings[key].rstrip('.')}")
    return "; ".join(said)


def _text_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _sections(sections: dict[str, Any], heading: str) -> str:
    parts = []
    for name, section in sections.items():
        summary = (section.__doc__ or "").split("\n\n")[0].strip()
        parts.append(f"{heading} {name}\n\n{summary}\n\n| key | type | default | |\n| --- | --- | --- | --- |")
        meanings = _attributes_of(section)
        for key, field in section.model_fields.items():
            default = "required" if field.is_required() else f"`{_default(field)}`"
            parts.append(f"| `{key}` | {_type(field.annotation)} | {default} | {meanings.get(key, '')} |")
        parts.append("")
    return "\n".join(parts)


def _attributes_of(section: Any) -> dict[str, str]:
    """Return what a record's keys mean, those that it inherits too."""
    found: dict[str, str] = {}
    for record in reversed(section.__mro__):
        if issubclass(record, pydantic.BaseModel) and record is not pydantic.BaseModel:
            found |= _attributes(record.__doc__ or "")
    return found


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
    if typing.get_origin(annotation) is tuple:
        return f"[{', '.join(_type(argument) for argument in arguments)}]"
    if typing.get_origin(annotation) in (dict, list):
        return typing.get_origin(annotation).__name__
    if arguments:
        return " \\| ".join(_type(argument) for argument in arguments if argument is not type(None))
    return str(getattr(annotation, "__name__", annotation))


def scenes_swin() -> str:
    """Return what the pretraining of the packaged Swin came to."""
    about = _pretraining()
    found, name = about["mean_average_precision"], {"kinds": "its kind, of 7", "vivid": "vivid", "parts": "parts, of 7"}
    rows = [[said, f"{found[key]:.3f}", f"{found[f'{key}_by_chance']:.3f}"] for key, said in name.items()]
    return (
        table(["question", "average precision, held out", "by frequency alone"], rows)
        + f"\nThe likeliest kind is right for {about['accuracy_of_kinds']:.1%} of the held-out solids (by chance about "
        f"a seventh). `{about['command']}` at commit `{about['commit'][:12]}`, {about['seconds'] / 60:.0f} minutes on "
        "two cores.\n"
    )


def _pretraining() -> dict[str, Any]:
    about: dict[str, Any] = json.loads(PRETRAINING.read_text(encoding="utf-8"))
    return about


def pretraining_curve() -> Picture:
    """Return the curves of the packaged Swin's pretraining."""
    points = [point for point in _pretraining()["curve"] if "eval_loss" in point]
    lines = {"accuracy": "likeliest kind right", "kinds": "kind", "vivid": "vivid", "parts": "parts"}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, key in enumerate(lines):
            axes.plot([p["step"] for p in points], [p[key] for p in points], **series(place))
        axes.set_xlabel("step")
        axes.set_ylabel("accuracy; average precision of the others")
        axes.set_ylim(0, 1)
        legend(figure, list(lines.values()))

    return picture("scenes-swin-curve", "Pretraining", "", points, (7.6, 3.0), draw)


def speed(name: str) -> Callable[[], str]:
    """Return what writes the table of a kept benchmark: the goals first, then the rest."""

    def write() -> str:
        path = RESULTS / f"speed-{name}.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        with_goal, others = [], []
        for line in data["measurements"]:
            measurement = Measurement(**{**line, "value": Spread(**line["value"])})
            goal, shown = goals.goal_of(name, measurement), goals.shown(measurement.value, measurement.unit)
            if goal is None:
                others.append([measurement.setting, measurement.quantity, shown])
            else:
                verdict = "met" if goal.met(measurement.value.median) else "**missed**"
                with_goal.append([measurement.setting, measurement.quantity, str(goal), shown, verdict])
        tables = [table(["setting", "quantity", "goal", "measured", ""], with_goal)] if with_goal else []
        if others:
            tables.append(table(["setting", "also measured" if with_goal else "quantity", "value"], others))
        return "\n".join([*tables, _made_by(data)])

    return write


def _made_by(data: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in data["machine"].items())
    return (
        f"`{data['command']}` at commit `{(data['commit'] or 'unknown')[:12]}`, torch "
        f"{data['versions']['torch']}, peft {data['versions']['peft']}; {machine}.\n"
    )


def speed_profile() -> str:
    """Return what share of a profiled step matrix products take."""
    data = json.loads((RESULTS / "speed-profile.json").read_text(encoding="utf-8"))
    products = {f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm_")}
    shares: dict[str, float] = {}
    for line in data["measurements"]:
        inside = line["quantity"] in products
        shares[line["setting"]] = shares.get(line["setting"], 0.0) + inside * line["value"]["median"]
    rows = [[setting, f"{share:.0f} %"] for setting, share in shares.items()]
    return f"{table(['setting', 'share of matrix products in the step'], rows)}\n{_made_by(data)}"


# What the README shows of the speed: the favourable and the unfavourable, each with the words that say what it is.
SUMMARY = (
    ("training_step", "minilm fp32, 32 × 64", "step: mtl_lora / peft_lora", "training step, time over PEFT's LoRA's"),
    ("training_step", "minilm fp32, 16 × 32", "step: mtl_lora / peft_lora", "… with few tokens a step"),
    ("training_step", "llama-1024 fp32, 8 × 128", "step: mtl_lora / peft_lora", "… decoder"),
    ("training_step", "minilm fp32, 32 × 64", "peak bytes: mtl_lora / peft_lora", "… its peak memory"),
    ("training_step", "llama-256 bf16, 8 × 16", "step: mtl_lora / peft_lora", "… bf16 on a CPU that emulates it"),
    (
        "training_step",
        "minilm fp32, 32 × 64, diagonal Λ, the layers of adapters",
        "step: adapters / mtl_lora",
        "training step, times faster than MTL-LoRA in adapters 1.3.0",
    ),
    ("task_count", "mtl_lora, minilm fp32, 16 × 64, T = 4096", "forward: T / T = 1", "forward, 4,096 tasks over one"),
    (
        "inference",
        "minilm fp32, 32 × 64, 16 tasks",
        "forward: peft_mixed / mtl_lora",
        "16 tasks in a batch, times faster than PEFT's mixed batches",
    ),
    ("inference", "llama-256 fp32, 32 × 64, 32 tasks", "forward: peft_mixed / mtl_lora", "… 32 tasks"),
    (
        "inference",
        "llama-2048 fp32, 16 × 32, 32 new tokens",
        "generation: mtl_lora / base",
        "generation, mixed tasks, time over the base model's",
    ),
)


def speed_summary() -> str:
    """Return the few lines of the benchmarks that the README shows."""
    rows = []
    for name, setting, quantity, words in SUMMARY:
        lines = json.loads((RESULTS / f"speed-{name}.json").read_text(encoding="utf-8"))["measurements"]
        (line,) = [line for line in lines if (line["setting"], line["quantity"]) == (setting, quantity)]
        rows.append([words, setting.partition(", diagonal")[0], goals.shown(Spread(**line["value"]), line["unit"])])
    return table(["MTL-LoRA", "setting", "ratio [quartiles]"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods_markdown,
    "features": features.table,
    "cli": cli,
    "task_metrics": task_metrics,
    "recipes": recipe_keys,
    "dense_recipes": dense_recipe_keys,
    "glue": comparison("glue-comparison"),
    "glue_methods": summary("glue-comparison"),
    "embedded": comparison("embedded-comparison"),
    "demo": comparison("demo-comparison"),
    "balancing": comparison("balancing-comparison"),
    "commonsense": comparison("commonsense-comparison"),
    "products": comparison("products-comparison"),
    "scenes": dense_comparison("scenes-comparison"),
    "scenes_methods": dense_summary("scenes-comparison"),
    "clothing": dense_comparison("clothing-comparison"),
    "rgbd": dense_comparison("rgbd-comparison"),
    "ablations": dense_comparison("ablations-comparison"),
    "scenes_swin": scenes_swin,
    "speed_training_step": speed("training_step"),
    "speed_profile": speed_profile,
    "speed_summary": speed_summary,
    "speed_task_count": speed("task_count"),
    "speed_inference": speed("inference"),
    "speed_start_and_files": speed("start_and_files"),
    "speed_streams": speed("streams"),
    "balancing_methods": balancing_methods,
    "speed_balancing": speed("balancing"),
    "speed_packing": speed("packing"),
}

# file in docs/figures → (the file it is drawn from, what draws it)
FIGURES: dict[str, tuple[Path, Callable[[], Picture]]] = {
    f"{stem}-{name}.svg": (RESULTS / f"{stem}-comparison.json", partial(of_kept, f"{stem}-comparison", draw))
    for stem, name, draw in (
        ("glue", "differences", figures.differences),
        ("glue", "score-and-size", sizes.score_and_size),
        ("embedded", "differences", figures.differences),
        ("balancing", "differences", figures.differences),
        ("commonsense", "differences", figures.differences),
        ("products", "differences", figures.differences),
        ("scenes", "delta-m-and-size", sizes.delta_m_and_size),
        ("clothing", "delta-m-and-size", sizes.delta_m_and_size),
        ("rgbd", "delta-m-and-size", sizes.delta_m_and_size),
        ("ablations", "delta-m-and-size", sizes.delta_m_and_size),
    )
} | {"scenes-swin-curve.svg": (PRETRAINING, pretraining_curve)}


def figure(name: str) -> str:
    """Return a figure as a file that follows the reader's light or dark mode; its first line says what it is from."""
    origin, draw = FIGURES[name]
    css = (resources.files("tasklora.report") / "templates" / "report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{.*?\n *\}", css, re.DOTALL)[:2]
    style = (
        f"<style>{light} @media (prefers-color-scheme: dark) {{ {dark} }} svg {{ background: var(--surface); }}</style>"
    )
    head, rest = draw().svg.split(">", 1)
    return f"{_origin(origin)}\n{head}>{style}{rest}\n"


def _origin(path: Path) -> str:
    """Return the line that ties a figure to its data. The drawing itself may differ with the version of matplotlib."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return f"<!-- drawn from {path.relative_to(ROOT).as_posix()}, SHA-256 {digest} -->"


def stale_figures(check: bool) -> list[str]:
    """Return the figures that are not drawn from the kept results as they are; draw them unless `check`."""
    stale = []
    for name, (origin, _) in FIGURES.items():
        path = ROOT / "docs" / "figures" / name
        if path.is_file() and path.read_text(encoding="utf-8").startswith(_origin(origin)):
            continue
        stale.append(path.relative_to(ROOT).as_posix())
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(figure(name), encoding="utf-8")
    return stale


def main() -> None:
    """Write or check every file that has generated parts."""
    check = sys.argv[1:] == ["--check"]
    stale = stale_figures(check)
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
