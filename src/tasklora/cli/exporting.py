"""The commands between tasklora and other formats: export, import, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tasklora.cli.app import Overwrite, RemoteCode, RunPath, _load, app, console, quiet_libraries

OutputPath = Annotated[Path, typer.Option("--to", help="Output directory; must be new or empty.")]


@app.command()
def export(
    run: RunPath,
    to: OutputPath,
    task: Annotated[str | None, typer.Option("--task", "-t", help="The task.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every task, each in its own folder.")] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="The base model with the task merged in, instead of a LoRA.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(help="The nearest LoRA of this smaller rank, with its error; exact if left out.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, of the written factors.")] = "float32",
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Export tasks as plain LoRA that stock PEFT, vLLM and llama.cpp load, or as merged models."""
    from tasklora.errors import ConfigError

    if every == (task is not None):
        raise ConfigError("say what to export: --task NAME or --all.")
    quiet_libraries()
    from tasklora.errors import did_you_mean
    from tasklora.export import export_task, export_task_merged, write_serving_page
    from tasklora.export.files import check_output
    from tasklora.tasks.base_model import DTYPES

    if merged and dtype != "float32":
        raise ConfigError("--dtype is for the factors of a LoRA: a merged model keeps its base's.")
    if merged and rank is not None:
        raise ConfigError("--rank is for a LoRA: a merged model has the whole update in its weights.")
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'.{did_you_mean(dtype, DTYPES)} One of: {', '.join(DTYPES)}.")
    from tasklora.cli.loading import is_dense_run, origin, saved_directory
    from tasklora.errors import UnsupportedError
    from tasklora.tasks import read_about

    if is_dense_run(run):
        raise UnsupportedError(
            f"{run} is a run on images, which is not exported: where task streams fork inside the network, no plain "
            "LoRA per task and no merged weights equal it. Use its model as it is: `tasklora predict`, or "
            "tasklora.vision.saved_model.load_dense_model."
        )
    about = read_about(saved_directory(run))
    if task is not None:
        about.spec_of(task)
    check_output(to, overwrite)
    places = {name: saved_directory(run, name) for name in (about.tasks if every else [task or ""])}
    written, loaded = {}, None
    for name, place in sorted(places.items(), key=lambda item: item[1]):  # models of several tasks are loaded once
        if loaded != place or merged:  # merging consumes the adapter
            model, about, base = _load(run, trust_remote_code, name)
            loaded = place
        target = to / name if every else to
        if merged:
            export_task_merged(model, about, name, target, base.tokenizer, overwrite=overwrite)
        else:
            export_task(model, about, name, target, rank=rank, dtype=DTYPES[dtype], overwrite=overwrite)
            written[name] = target
        kind = "merged model" if merged else "plain LoRA"
        said = [f"{kind} in [bold]{target}[/bold]{'' if merged else _reduced(target)}", origin(run, place)]
        console.print(f"{name}: {'; of '.join(filter(None, said))}", highlight=False)
    if every and written and write_serving_page(to, written):
        console.print(f"how to serve them together: [bold]{to / 'README.md'}[/bold]")


def _reduced(target: Path) -> str:
    """Return what a rank-reduced export lost, in words."""
    from tasklora.export import read_manifest

    reduction: dict[str, Any] | None = read_manifest(target)["reduction"]
    if not reduction:
        return ""
    worst = max(reduction["layers"], key=reduction["layers"].get)
    return (
        f", rank {reduction['rank']} of {reduction['exact_rank']}: relative error {reduction['relative_error']:.3g} of "
        f"the updates together, {reduction['layers'][worst]:.3g} at most ({worst})"
    )


@app.command("import")
def import_(
    loras: Annotated[list[str], typer.Argument(help="TASK=DIRECTORY, a PEFT LoRA each.")],
    to: OutputPath,
    overwrite: Overwrite = False,
) -> None:
    """Join plain LoRAs, one per task, to one adapter that runs batches of all their tasks."""
    from tasklora.errors import ConfigError, listing

    pairs = [text.partition("=") for text in loras]
    for text, (name, sign, place) in zip(loras, pairs, strict=True):
        if not (name and sign and place):
            raise ConfigError(f"a LoRA is given as TASK=DIRECTORY, got '{text}'.")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise ConfigError(f"every task needs a name of its own, got: {listing(names)}.")
    quiet_libraries()
    from tasklora.export import bank_of_loras

    config, left_out = bank_of_loras({name: place for name, _, place in pairs}, to, overwrite=overwrite)
    console.print(
        f"{len(names)} tasks, rank {config.r}: an adapter of per_task_lora in [bold]{to}[/bold]", highlight=False
    )
    if left_out:
        console.print(f"not in it, as no LoRA can hold them: {listing(left_out, 6)}", highlight=False)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint of the published code of MTL-LoRA (text) or MTLoRA (dense vision), which is told from "
            "its content; or, with --to-reference, the folder of an adapter or a dense model."
        ),
    ],
    to: Annotated[Path | None, typer.Option("--to", help="Where to; must be new or empty.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="The tasks' names, in the order of their ids, separated by commas; MTLoRA: the file's."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="MTL-LoRA: lora_alpha of the training script.")] = None,
    temperature: Annotated[float | None, typer.Option(help="MTL-LoRA: temperature of the training script.")] = None,
    base: Annotated[str | None, typer.Option(help="Name or path of the base model.")] = None,
    revision: Annotated[str | None, typer.Option(help="The base model's revision.")] = None,
    task_type: Annotated[str | None, typer.Option(help="MTL-LoRA: PEFT's task type, e.g. CAUSAL_LM.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="MTL-LoRA: `commonsense`, what the published script for LLaMA2-7B sets.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="MTLoRA: what its tasks are, e.g. pascal_context@1.")] = None,
    scale: Annotated[float | None, typer.Option(help="MTLoRA: the scale, where the file has no settings.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="MTLoRA: matrix, matrixv2 or addition, where the file has no settings.")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="MTLoRA: 448, or 480x640 (height x width), where the file has no settings.")
    ] = None,
    base_from_checkpoint: Annotated[
        Path | None, typer.Option(help="MTLoRA, in place of --base: a folder to write the file's own backbone to.")
    ] = None,
    to_reference: Annotated[
        Path | None, typer.Option(help="The other way: write the folder as the published code's .pt or .pth file.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert checkpoints of the published code of MTL-LoRA and MTLoRA, and back."""
    from tasklora.errors import ConfigError

    of_text = {"--alpha": alpha, "--temperature": temperature, "--task-type": task_type, "--preset": preset}
    of_dense = {
        "--suite": suite,
        "--scale": scale,
        "--mode": mode,
        "--image-size": image_size,
        "--base-from-checkpoint": base_from_checkpoint,
    }
    of_both = {"--tasks": tasks, "--base": base, "--revision": revision}
    if (to is None) == (to_reference is None):
        raise ConfigError(
            "say where to: --to DIRECTORY for a model of tasklora, or --to-reference FILE for the published code's."
        )
    quiet_libraries()
    if to_reference is not None:
        if given := _given({**of_both, **of_text, **of_dense}):
            raise ConfigError(f"--to-reference takes all it needs from the folder: leave out {', '.join(given)}.")
        _convert_back(source, to_reference, overwrite)
        return
    from tasklora.export.checkpoints import MTLORA, kind_of, read_state

    assert to is not None
    if kind_of(read_state(source), source) != MTLORA:
        if given := _given(of_dense):
            raise ConfigError(
                f"{source} holds a checkpoint of MTL-LoRA, the method for text: leave out {', '.join(given)}."
            )
        _convert_text(source, to, tasks, base, revision, alpha, temperature, task_type, preset, overwrite)
        return
    if given := _given(of_text):
        raise ConfigError(f"{source} holds a checkpoint of MTLoRA, the vision method: leave out {', '.join(given)}.")
    from tasklora.cli.lists import names_of
    from tasklora.export import convert_mtlora

    if suite is None:
        raise ConfigError(f"{source} does not say what its tasks are: give --suite, e.g. pascal_context@1 or nyud@1.")
    done = convert_mtlora(
        source,
        to,
        suite=suite,
        base=base,
        revision=revision,
        base_from_checkpoint=base_from_checkpoint,
        tasks=names_of(tasks) if tasks is not None else None,
        scale=scale,
        mode=mode,
        image_size=_image_size(image_size),
        overwrite=overwrite,
    )
    named = ", ".join(name if name == theirs else f"{name} ({theirs})" for theirs, name in done.tasks.items())
    plus = "+" if done.config.plus else ""
    console.print(
        f"MTLoRA{plus}, r {done.config.r}, task r {done.config.task_r}, scale {done.config.scale}, "
        f"mode {done.config.mode}: a dense model on {done.base} in [bold]{to}[/bold]",
        highlight=False,
    )
    console.print(f"tasks: {named}", highlight=False)
    console.print("use it: tasklora predict DIRECTORY image.jpg --out PICTURES", highlight=False)


def _given(options: dict[str, Any]) -> list[str]:
    return [name for name, value in options.items() if value is not None]


def _image_size(text: str | None) -> int | tuple[int, int] | None:
    """Return the side, or height and width, of ``448`` or ``480x640``.

    Raises:
        ConfigError: if it is neither.
    """
    from tasklora.errors import ConfigError

    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise ConfigError(
            f"--image-size takes a side in pixels, e.g. 448, or height x width, e.g. 480x640; got '{text}'."
        )
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _convert_back(source: Path, file: Path, overwrite: bool) -> None:
    from tasklora.export import write_mtlora, write_reference
    from tasklora.vision.saved_model import is_dense

    if is_dense(source):
        config = write_mtlora(source, file, overwrite=overwrite)
        console.print(f"the network in [bold]{file}[/bold], for MTLoRA's published code", highlight=False)
        console.print(
            f"its settings there: R_PER_TASK {config.task_r}, shared {config.r}; SHARED_SCALE {config.scale}, "
            f"SCALE_PER_TASK {config.task_scale}; SHARED_MODE {config.mode}; DOWNSAMPLER_ENABLED {config.plus}",
            highlight=False,
        )
        return
    count = write_reference(source, file, overwrite=overwrite)
    console.print(f"{count} layers in [bold]{file}[/bold], for the published code", highlight=False)


def _convert_text(
    source: Path,
    to: Path,
    tasks: str | None,
    base: str | None,
    revision: str | None,
    alpha: float | None,
    temperature: float | None,
    task_type: str | None,
    preset: str | None,
    overwrite: bool,
) -> None:
    from tasklora.cli.lists import names_of
    from tasklora.errors import ConfigError, did_you_mean
    from tasklora.export import PRESETS, convert_reference

    settings = {"--tasks": tasks, "--alpha": alpha, "--temperature": temperature, "--base": base}
    expected_rank = None
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(
                f"unknown preset '{preset}'.{did_you_mean(preset, PRESETS)} There is: {', '.join(PRESETS)}."
            )
        known = PRESETS[preset]
        expected_rank = known.r if alpha is None else None
        tasks, base = tasks or ",".join(known.tasks), base or known.base
        alpha = known.lora_alpha if alpha is None else alpha
        temperature = known.temperature if temperature is None else temperature
        task_type = task_type or known.task_type
    elif missing := [name for name, value in settings.items() if value is None]:
        raise ConfigError(
            f"a checkpoint of the published code does not hold its settings: give {', '.join(missing)} as the training "
            f"script had them, or --preset ({', '.join(PRESETS)}) for the published script's."
        )
    assert tasks is not None
    assert alpha is not None
    assert temperature is not None
    assert base is not None
    done = convert_reference(
        source,
        to,
        tasks=names_of(tasks),
        lora_alpha=alpha,
        temperature=temperature,
        base=base,
        revision=revision,
        task_type=task_type,
        expected_rank=expected_rank,
        overwrite=overwrite,
    )
    config = done.config
    sizes = f"{done.layers} layers, r {config.r}, n {config.up_projections}, {len(config.tasks)} tasks"
    console.print(f"{sizes}, {config.task_matrix} task matrices: an adapter in [bold]{to}[/bold]", highlight=False)
    console.print("load it: import tasklora; peft.PeftModel.from_pretrained(base_model, DIRECTORY)", highlight=False)
