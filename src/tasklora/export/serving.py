"""Commands that serve exported tasks with vLLM, SGLang and llama.cpp.

They follow those projects' documentation; none of them was run here. They are given for causal language models only:
an encoder's head is no part of a LoRA.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as ``--max-lora-rank``; an adapter may have any rank up to it."""

NOTE = "Written after each project's documentation; not run by tasklora."
PAGE = "README.md"
_TITLES = {"vllm": "vLLM", "sglang": "SGLang", "llama_cpp": "llama.cpp"}


def vllm_rank(rank: int) -> int | None:
    """Return the smallest ``--max-lora-rank`` of vLLM that holds `rank`, None if there is none."""
    return next((value for value in VLLM_RANKS if value >= rank), None)


def is_causal_lm(model: nn.Module) -> bool:
    """Return whether a plain model is a causal language model of transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def serving_commands(base: str | None, exports: Mapping[str, str | Path], rank: int) -> dict[str, list[str]]:
    """Return engine → the commands that serve exported tasks together.

    Args:
        base: name or path of the base model; None becomes the placeholder ``BASE``.
        exports: task → its export's directory.
        rank: the largest rank among them. vLLM's commands are left out where it is too large for vLLM.
    """
    name = shlex.quote(base or "BASE")
    modules = " ".join(shlex.quote(f"{task}={directory}") for task, directory in exports.items())
    commands = {}
    largest = vllm_rank(rank)
    if largest is not None:
        options = f"--enable-lora --max-loras {len(exports)} --max-lora-rank {largest}"
        commands["vllm"] = [f"vllm serve {name} {options} --lora-modules {modules}"]
    options = f"--enable-lora --max-loras-per-batch {len(exports)}"
    commands["sglang"] = [f"python -m sglang.launch_server --model-path {name} {options} --lora-paths {modules}"]
    which = "--base" if base is None or os.path.isdir(base) else "--base-model-id"
    converted = {task: shlex.quote(f"{directory}.gguf") for task, directory in exports.items()}
    commands["llama_cpp"] = [
        f"python convert_lora_to_gguf.py {shlex.quote(str(exports[task]))} {which} {name} --outfile {file}"
        for task, file in converted.items()
    ] + [f"llama-cli -m BASE.gguf --lora {file}" for file in converted.values()]
    return commands


def serving_facts(
    model: nn.Module, base: str | None, exports: Mapping[str, str | Path], rank: int, head: bool
) -> dict[str, Any]:
    """Return the manifest's ``commands`` and the note on them.

    Args:
        model: the plain base model.
        base: its name.
        exports: task → directory.
        rank: of the LoRA.
        head: whether modules were trained in full beside it, which a served LoRA would lack.
    """
    if not is_causal_lm(model):
        return {"commands": {}, "commands_note": "None: the base is no causal language model."}
    if head:
        why = "None: modules trained in full are no part of the LoRA; serve the merged model."
        return {"commands": {}, "commands_note": why}
    return {"commands": serving_commands(base, exports, rank), "commands_note": NOTE}


def serving_page(commands: Mapping[str, list[str]], tasks: Mapping[str, str | Path]) -> str:
    """Return a page in Markdown: how to serve all of `tasks` at once."""
    parts = [
        "# Serving these tasks\n",
        "One folder is one task as a plain LoRA; requests name the task as their model (vLLM, SGLang). " + NOTE + "\n",
        "\n".join(f"- `{task}`: `{directory}`" for task, directory in tasks.items()) + "\n",
    ]
    for engine, lines in commands.items():
        parts.append(f"## {_TITLES[engine]}\n\n```bash\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)
