"""What is measured: models of known sizes with random weights, and the contenders that adapt them.

Nothing here imports tasklora before a contender of it is asked for: adapters_peer.py uses these models in an
environment without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

R, ALPHA, UP_PROJECTIONS = 8, 16, 3
VOCABULARY = 1000  # embeddings cost no time worth measuring; a small table saves memory
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LLAMAS = {"llama-64": 2, "llama-256": 4, "llama-1024": 2, "llama-2048": 1}  # name with the width → layers

# The layers that the package adapters adapts with q, k, v, intermediate and output switched on, as a regex.
ADAPTERS_TARGETS = (
    r".*\.(query|key|value)|.*\.layer\.\d+\.(intermediate|output)\.dense"
    r"|.*\.(q_proj|k_proj|v_proj)|.*\.mlp\.(up_proj|down_proj)"
)


@dataclass(frozen=True)
class Setting:
    """A model, its dtype and the batch it is given."""

    model: str
    dtype: str
    rows: int
    length: int

    def __str__(self) -> str:
        return f"{self.model} {self.dtype}, {self.rows} × {self.length}"

    def input_ids(self, device: str) -> Tensor:
        """Return random tokens (rows, length)."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(5, VOCABULARY, (self.rows, self.length), generator=generator).to(device)


def base_model(name: str, dtype: str, device: str, with_head: bool = False) -> nn.Module:
    """Return a frozen base model with random weights and no dropout.

    Args:
        name: "minilm" (the sizes of all-MiniLM-L6-v2) or one of LLAMAS.
        dtype: one of DTYPES.
        device: where to.
        with_head: a causal language model, to generate with.
    """
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, LlamaModel

    torch.manual_seed(0)
    model: nn.Module
    if name == "minilm":
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = BertModel(config, add_pooling_layer=False)  # a pooler sees no sequence, which Poly cannot adapt
    else:
        width = int(name.removeprefix("llama-"))
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=64 * round(2.75 * width / 64),
            num_hidden_layers=LLAMAS[name],
            num_attention_heads=width // 64,
            use_cache=with_head,
        )
        model = LlamaForCausalLM(config) if with_head else LlamaModel(config)
    return model.to(device, DTYPES[dtype]).requires_grad_(False)


def let_inputs_require_grad(model: nn.Module) -> None:
    """Let gradients flow to the input of every layer, the first ones included, as they do deep inside a model."""
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(True))


@dataclass
class Contender:
    """An adapted model.

    Attributes:
        model: the model; its trainable parameters are the adapter.
        call: (input_ids, task ids of the rows) → last hidden state.
    """

    model: nn.Module
    call: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def loss(self, input_ids: Tensor, task_ids: Tensor) -> Tensor:
        """Return the mean of cubes of the last hidden state: a loss without a head or labels.

        Not the mean of squares: the norm at a model's end makes that a constant, with gradients of rounding errors.
        """
        return self.call(input_ids, task_ids).float().pow(3).mean()

    def step(self, input_ids: Tensor, task_ids: Tensor) -> None:
        """Run forward and backward, with no gradients from before."""
        for parameter in self.parameters:
            parameter.grad = None
        self.loss(input_ids, task_ids).backward()


def task_names(tasks: int) -> list[str]:
    """Return names for a number of tasks."""
    return [f"task{index}" for index in range(tasks)]


def _limit(base: nn.Module, tasks: int, targets: str) -> Contender:
    return Contender(base, lambda input_ids, task_ids: base(input_ids=input_ids).last_hidden_state)


def _peft_lora(base: nn.Module, tasks: int, targets: str) -> Contender:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base, LoraConfig(r=R, lora_alpha=ALPHA, target_modules=targets))
    return Contender(model, lambda input_ids, task_ids: model(input_ids=input_ids).last_hidden_state)


def _peft_poly(base: nn.Module, tasks: int, targets: str) -> Contender:
    from peft import PolyConfig, get_peft_model

    config = PolyConfig(r=R, n_tasks=tasks, n_skills=UP_PROJECTIONS, target_modules=targets)
    # PEFT's wrapper for models without a task type drops task_ids; the tuner inside it takes them.
    return _with_task_ids(get_peft_model(base, config).base_model)


def _mtl_lora(base: nn.Module, tasks: int, targets: str, task_matrix: str = "full") -> Contender:
    from peft import get_peft_model

    import tasklora

    config = tasklora.MTLLoraConfig(
        tasks=task_names(tasks),
        r=R,
        lora_alpha=ALPHA,
        up_projections=UP_PROJECTIONS,
        task_matrix=task_matrix,
        target_modules=targets,
    )
    return _with_task_ids(get_peft_model(base, config))


def _per_task_lora(base: nn.Module, tasks: int, targets: str) -> Contender:
    from peft import get_peft_model

    import tasklora

    config = tasklora.PerTaskLoraConfig(tasks=task_names(tasks), r=R, lora_alpha=ALPHA, target_modules=targets)
    return _with_task_ids(get_peft_model(base, config))


def _with_task_ids(model: nn.Module) -> Contender:
    return Contender(model, lambda input_ids, task_ids: model(input_ids=input_ids, task_ids=task_ids).last_hidden_state)


def _per_sample_bmm(base: nn.Module, tasks: int, targets: str) -> Contender:
    from per_sample_bmm import adapt

    assert targets == "all-linear"
    row_tasks = adapt(base, tasks, R, ALPHA, UP_PROJECTIONS)

    def call(input_ids: Tensor, task_ids: Tensor) -> Tensor:
        row_tasks.ids = task_ids
        return base(input_ids=input_ids).last_hidden_state

    return Contender(base, call)


_CONTENDERS = {
    "limit": _limit,  # the frozen base alone: forward, and backward to the inputs; no adapter can cost less
    "peft_lora": _peft_lora,
    "peft_poly": _peft_poly,
    "mtl_lora": _mtl_lora,
    "mtl_lora_diagonal": partial(_mtl_lora, task_matrix="diagonal"),
    "per_task_lora": _per_task_lora,
    "per_sample_bmm": _per_sample_bmm,
}


def contender(
    name: str, model: str, dtype: str, device: str, tasks: int, targets: str = "all-linear", training: bool = True
) -> Contender:
    """Return a contender on a base model of its own.

    Args:
        name: one of `_CONTENDERS`.
        model: see :func:`base_model`.
        dtype: of the base; each library keeps the dtype it gives its adapter by default.
        device: where to.
        tasks: how many.
        targets: PEFT's target_modules.
        training: in training mode, with gradients to the inputs of all layers; else for inference.
    """
    base = base_model(model, dtype, device)
    if training:
        let_inputs_require_grad(base)
    made = _CONTENDERS[name](base, tasks, targets)
    made.model.train(training)
    randomise(made.model)
    return made


def randomise(model: nn.Module) -> None:
    """Give every trainable parameter random values: an adapter begins with zeros, after one step it has none."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02)
