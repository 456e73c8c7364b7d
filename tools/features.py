"""The table feature × method of docs/features.md: every cell stands on a test that ran for that method.

A feature names test functions. A cell is "yes" if one of them is collected with the method in its id; "refused" if one
of the tests of its refusal is; "–" where the feature is about tasks and the method knows none. A cell that has neither
stops the generator, so the table cannot promise what no test shows.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasklora.tuner import METHODS

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Feature:
    """One row of the table.

    Attributes:
        name: as in the table.
        tests: ``file::test`` below tests/, each run for the methods that have the feature; ``file::test[word]`` counts
            the runs that have that word in their id.
        refusals: the same for the methods that refuse it by name.
        needs_tasks: whether it means nothing for methods that know no tasks.
    """

    name: str
    tests: tuple[str, ...]
    refusals: tuple[str, ...] = ()
    needs_tasks: bool = False


GROUPS: dict[str, tuple[Feature, ...]] = {
    "Mathematics": (
        Feature(
            "plain LoRA of a task: exact",
            ("updates/test_family_law.py::test_forward_equals_the_plain_lora_of_the_task",),
            ("updates/test_family_law.py::test_a_routed_update_refuses_what_needs_one_matrix",),
        ),
        Feature(
            "mixed batches, ids per row",
            ("updates/test_rows_and_tokens.py::test_a_mixed_batch_equals_its_rows_one_by_one",),
            needs_tasks=True,
        ),
        Feature(
            "ids per token (packed rows)",
            ("updates/test_rows_and_tokens.py::test_token_ids_equal_a_token_by_token_computation",),
            needs_tasks=True,
        ),
        Feature(
            "mixtures of tasks",
            ("updates/test_rows_and_tokens.py::test_a_mixture_is_linear_in_its_weights",),
            needs_tasks=True,
        ),
        Feature("gradients, to the second order", ("updates/test_fused_forms.py::test_gradcheck_to_the_second_order",)),
        Feature(
            "cost free of the number of tasks",
            ("updates/test_rows_and_tokens.py::test_kept_activations_do_not_depend_on_the_number_of_tasks",),
            needs_tasks=True,
        ),
    ),
    "Tasks": (
        Feature(
            "a new task, all else frozen",
            ("tuner/test_task_lists.py::test_only_what_is_a_new_tasks_own_is_trained",),
            ("tuner/test_task_lists.py::test_methods_without_task_ids_have_nothing_to_add_to",),
        ),
        Feature(
            "a new task in a run (`--extend`)",
            ("training/test_extending_runs.py::test_trained_tasks_keep_their_numbers_bit_by_bit",),
        ),
        Feature(
            "removed tasks, stable ids",
            ("tuner/test_task_lists.py::test_removed_tasks_leave_their_ids_unused",),
            needs_tasks=True,
        ),
        Feature("renamed tasks", ("tuner/test_task_lists.py::test_a_new_name_keeps_id_and_numbers",)),
    ),
    "Base layers": (
        Feature(
            "Linear, Conv1D, 1×1 Conv2d",
            ("tuner/test_layer_kinds.py::test_the_output_is_the_base_and_the_plain_lora_of_the_task[conv]",),
        ),
        Feature(
            "Embedding",
            ("tuner/test_layer_kinds.py::test_the_output_is_the_base_and_the_plain_lora_of_the_task[embedding]",),
            ("tuner/test_embeddings_and_refusals.py::test_a_gate_that_reads_features_refuses_embeddings_by_name",),
        ),
        Feature(
            "quantised (bitsandbytes, torchao, quanto, HQQ)",
            ("integrations/test_quantised_bases.py::test_the_output_is_the_quantised_base_and_the_update",),
        ),
        Feature(
            "merging into the base, and out again",
            ("tuner/test_merging.py::test_merge_and_unmerge_restore_every_bit",),
            ("tuner/test_merging.py::test_a_routed_adapter_refuses_to_merge_and_stays_as_it_was",),
        ),
    ),
    "Models": (
        Feature(
            "Llama, Qwen, GPT-2, T5, BART, BERT, RoBERTa, DeBERTa, ViT, Swin, Whisper",
            ("integrations/test_model_families.py::test_a_mixed_batch_equals_its_rows_one_by_one",),
        ),
        Feature(
            "generation: greedy, beams, return sequences, static cache",
            ("integrations/test_generation_families.py::test_rows_alone_for_every_method",),
        ),
        Feature("sampling", ("integrations/test_generation_families.py::test_seeded_samples_equal_the_merged_models",)),
    ),
    "Training": (
        Feature("transformers' Trainer", ("integrations/test_trainers.py::test_trains_what_a_plain_loop_trains",)),
        Feature("TRL's SFTTrainer", ("integrations/test_trl.py::test_sft",)),
        Feature("accelerate", ("integrations/test_accelerate.py::test_accumulation_equals_large_batches",)),
        Feature("DDP, two processes", ("integrations/test_distributed.py::test_ddp",)),
        Feature("FSDP2, two processes", ("integrations/test_distributed.py::test_fsdp2",)),
        Feature(
            "FSDP2 in `tasklora train`",
            ("training/test_sharding.py::test_a_sharded_model_is_saved_and_loaded_bit_by_bit",),
        ),
        Feature(
            "activation checkpointing, both kinds",
            ("tuner/test_training_machinery.py::test_checkpointing_enabled_on_the_wrapper",),
        ),
        Feature(
            "accumulation",
            ("tuner/test_training_machinery.py::test_accumulated_gradients_equal_those_of_the_whole_batch",),
        ),
        Feature("autocast", ("tuner/test_training_machinery.py::test_autocast_of_a_model",)),
        Feature("bf16 base, fp32 adapter", ("tuner/test_training_machinery.py::test_bf16_base_with_fp32_adapter",)),
        Feature("torch.compile, one graph", ("integrations/test_compile.py::test_one_compilation_for_all_ids",)),
    ),
    "Files and adapters": (
        Feature("save and load", ("tuner/test_save_and_load.py::test_same_numbers_after_loading",)),
        Feature("AutoPeftModel…", ("integrations/test_adapter_life_cycle.py::test_auto_classes",)),
        Feature("transformers' load_adapter", ("tuner/test_transformers_load_adapter.py::test_every_method_loads",)),
        Feature(
            "several adapters, switching",
            ("integrations/test_adapter_life_cycle.py::test_three_adapters_in_any_order",),
        ),
        Feature(
            "numbers swapped in place", ("integrations/test_adapter_life_cycle.py::test_numbers_are_swapped_in_place",)
        ),
        Feature(
            "add_weighted_adapter",
            (),
            ("integrations/test_adapter_life_cycle.py::test_add_weighted_adapter_is_refused",),
        ),
        Feature("model card", ("integrations/test_hub.py::test_the_card_of_every_method",)),
    ),
    "Out and in": (
        Feature(
            "export of a task as plain LoRA",
            ("export/test_models_of_all_kinds.py::test_stock_peft_gives_the_same_logits",),
            ("export/test_models_of_all_kinds.py::test_a_routed_method_is_refused_before_anything_is_written",),
        ),
        Feature(
            "export at a lower rank (SVD)",
            ("export/test_rank_reduction.py::test_the_export_is_reduced_and_says_what_it_lost",),
            ("export/test_models_of_all_kinds.py::test_a_routed_method_is_refused_before_anything_is_written",),
        ),
        Feature(
            "merged checkpoint of a task",
            ("export/test_merged_checkpoints.py::test_the_files_have_the_tasks_logits",),
            ("tuner/test_merging.py::test_a_routed_adapter_refuses_to_merge_and_stays_as_it_was",),
        ),
        Feature(
            "import of a plain LoRA",
            (
                "export/test_importing.py::test_the_start_of_a_shared_method_is_the_lora_for_every_task",
                "export/test_importing.py::test_what_was_exported_comes_back",
            ),
        ),
        Feature("lm-eval", ("integrations/test_lm_eval.py::test_every_kind_of_request_under_every_task",)),
    ),
}


def table() -> str:
    """Return the table in Markdown.

    Raises:
        SystemExit: naming every cell that no collected test stands for.
    """
    collected = _collected()
    head = ["feature", *(f"`{name}`" for name in METHODS), "test"]
    lines, missing = [], []
    for group, features in GROUPS.items():
        lines += [f"**{group}**", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        for feature in features:
            cells = [_cell(feature, method, collected) for method in METHODS]
            missing += [f"{feature.name} × {method}" for method, cell in zip(METHODS, cells, strict=True) if not cell]
            tests = ", ".join(f"`{test}`" for test in (*feature.tests, *feature.refusals))
            lines.append("| " + " | ".join([feature.name, *cells, tests]) + " |")
        lines.append("")
    if missing:
        sys.exit("no test stands for: " + "; ".join(missing))
    return "\n".join(lines)


def _cell(feature: Feature, method: str, collected: dict[str, list[str]]) -> str:
    if _ran(feature.tests, method, collected):
        return "yes"
    if _ran(feature.refusals, method, collected):
        return "refused"
    return "–" if feature.needs_tasks and not METHODS[method].update_cls.uses_task_ids else ""


def _ran(tests: Sequence[str], method: str, collected: dict[str, list[str]]) -> bool:
    """Return whether one of `tests` is collected with the method in its id."""
    named = re.compile(rf"(?<![a-z_]){method}(?![a-z_])")
    for test in tests:
        name, _, word = test.removesuffix("]").partition("[")
        if any(named.search(parameters) and word in parameters for parameters in collected.get(name, ())):
            return True
    return False


def _collected() -> dict[str, list[str]]:
    """Return ``file::test`` → the parameters of its runs, as pytest collects them, slow ones too."""
    files = {test.partition("::")[0] for group in GROUPS.values() for f in group for test in (*f.tests, *f.refusals)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-m",
        "",
        *(f"tests/{file}" for file in sorted(files)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"pytest cannot collect the tests:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("tests/"):
            test, _, parameters = line.removeprefix("tests/").partition("[")
            found.setdefault(test, []).append(parameters)
    return found
