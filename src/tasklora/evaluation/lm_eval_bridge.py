"""lm-eval's benchmarks, each under its own task of an adapter: ``lm_eval --model tasklora``.

``--model_args pretrained=BASE,adapter=DIRECTORY,task_map=boolq:boolq;arc_easy:ARC-Easy`` gives the base model, the
adapter and which of its tasks each lm-eval task is evaluated under; what else ``--model hf`` takes is taken too. The
requests of one task are run together by lm-eval's own code, so the numbers are those of the merged model of that task.

Importing this module makes the model known to lm-eval; for its command see :mod:`tasklora_lm_eval`.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftConfig, PeftModel
from torch import nn

from tasklora.errors import (
    CheckpointError,
    ConfigError,
    TaskLoraError,
    UnknownTaskError,
    UnsupportedError,
    did_you_mean,
    first_line,
    listing,
)
from tasklora.tuner import TaskLoraConfig, active_adapters, context_of, find_context, use_tasks

try:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as missing:
    raise UnsupportedError(
        f"the lm-eval bridge needs lm-eval ({missing}): pip install 'lm-eval[hf]>=0.4.13'."
    ) from missing

import tasklora_lm_eval

LANGUAGE_MODELS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM")
HOW_TO_MAP = "task_map=LM_EVAL_TASK:ADAPTER_TASK;…, a JSON file of such pairs, or *:ADAPTER_TASK for all"

Answer = TypeVar("Answer")
TaskMap = str | Mapping[str, str]

_log = logging.getLogger(__name__)


class TaskLoraLM(HFLM):
    """lm-eval's Hugging Face model, with an adapter of tasklora and a task of it for each lm-eval task.

    Args:
        pretrained: the base model, by name or path; or a model that is adapted already (then without `adapter`).
        adapter: the adapter, by directory or hub name.
        task_map: lm-eval task → adapter task; names on the left may have wildcards, of which the first that fits
            counts. As ``a:b;c:d``, as the path of a JSON file, or as a mapping. None: the names are the same. An
            adapter with one task, or of a method without task ids, needs none.
        adapter_revision: of an adapter on the hub.
        **options: those of ``--model hf``.

    Raises:
        ConfigError: if the adapter is not given or is none of a language model, or the map cannot be read.
        UnknownTaskError: if the map names a task that the adapter does not have.
        CheckpointError: if there is no such adapter, it is none of tasklora, or it does not fit the base.
        UnsupportedError: with ``peft=``, ``delta=``, lm-eval's cache of answers, or several processes.
    """

    def __init__(
        self,
        pretrained: Any,
        adapter: str | None = None,
        task_map: TaskMap | None = None,
        adapter_revision: str | None = None,
        **options: Any,
    ) -> None:
        for option in ("peft", "delta"):
            if options.get(option):
                raise UnsupportedError(f"--model tasklora takes no {option}=: the adapter is given as adapter=.")
        revision = {} if adapter_revision is None else {"revision": str(adapter_revision)}
        if isinstance(pretrained, nn.Module):
            if adapter is not None or find_context(pretrained) is None:
                raise ConfigError(
                    "give pretrained= by name or path together with adapter=, or a model that is adapted already alone."
                )
            configs: Any = pretrained.peft_config
            self._take_tasks(configs[active_adapters(pretrained)[0]], task_map)
            super().__init__(pretrained, **options)
        else:
            if adapter is None:
                raise ConfigError("--model tasklora needs adapter=, the directory or hub name of an adapter.")
            # All that can be checked without the base model, which may be large, is checked before it is loaded.
            config = _adapter_config(str(adapter), revision)
            self._take_tasks(config, task_map)
            super().__init__(str(pretrained), **options)
            base: nn.Module = self.model
            self._model: Any = _with_adapter(base, str(pretrained), str(adapter), config, revision)
            self.peft = str(adapter)  # lm-eval notes the revision of what it finds here
        self.model.eval()
        self._needs_ids = any(context_of(self.model).tasks[name].needs_ids for name in active_adapters(self.model))
        if self.world_size > 1:
            raise UnsupportedError(
                "--model tasklora evaluates in one process: start it without accelerate launch. A model too large for "
                "one device takes parallelize=True."
            )

    def _take_tasks(self, config: TaskLoraConfig, task_map: TaskMap | None) -> None:
        self._tasks = config.task_names
        self._task_map = None if task_map is None else read_task_map(task_map)
        for name, task in (self._task_map or {}).items():
            if task not in self._tasks:
                raise UnknownTaskError(
                    f"task_map sends '{name}' to '{task}', which the adapter does not have."
                    f"{did_you_mean(task, self._tasks)} It has: {listing(self._tasks)}."
                )

    def task_of(self, name: str | None) -> str | None:
        """Return the adapter's task for an lm-eval task; None if there is none."""
        if self._task_map is None:
            return self._tasks[0] if len(self._tasks) == 1 else (name if name in self._tasks else None)
        if name in self._task_map:
            return self._task_map[name]
        return next((task for wild, task in self._task_map.items() if fnmatch.fnmatchcase(name or "", wild)), None)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse lm-eval's cache of answers, whose key is the prompt alone: two tasks may ask the same.

        Raises:
            UnsupportedError: if there is a cache.
        """
        if cache_hook.dbdict is not None:
            raise UnsupportedError(
                "--use_cache finds answers by their prompt alone, but here the answer depends on the task too: leave "
                "it out."
            )
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-likelihood, whether greedy) of each continuation, under the task of its request."""
        return self._by_task(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, under the task of its request."""
        return self._by_task(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what is generated after each context, under the task of its request."""
        return self._by_task(super().generate_until, requests, disable_tqdm)

    def _by_task(
        self, run: Callable[..., list[Answer]], requests: Sequence[Instance], disable_tqdm: bool
    ) -> list[Answer]:
        """Run the requests of each task together; return the answers in the order of the requests.

        Raises:
            UnknownTaskError: if an lm-eval task has no task of the adapter; nothing is run then.
        """
        if not self._needs_ids:
            return run(list(requests), disable_tqdm=disable_tqdm)
        places: dict[str, list[int]] = {}
        missing: dict[str, None] = {}
        for place, request in enumerate(requests):
            task = self.task_of(request.task_name)
            if task is None:
                missing[str(request.task_name)] = None
            else:
                places.setdefault(task, []).append(place)
        if missing:
            raise UnknownTaskError(
                f"no task of the adapter for these lm-eval tasks: {listing(missing)}. It has: {listing(self._tasks)}. "
                f"Say which is meant: {HOW_TO_MAP}."
            )
        answers: dict[int, Answer] = {}
        for task, chosen in places.items():
            # Those that "auto" found for the requests of another task need not fit these.
            self.batch_sizes: dict[int, int] = {}
            with use_tasks(self.model, task):
                answers.update(zip(chosen, run([requests[i] for i in chosen], disable_tqdm=disable_tqdm), strict=True))
        return [answers[place] for place in range(len(requests))]


def read_task_map(given: TaskMap) -> dict[str, str]:
    """Return a map of lm-eval tasks to tasks of the adapter.

    Args:
        given: ``a:b;c:d``, the path of a JSON file with an object, or a mapping.

    Raises:
        ConfigError: if it cannot be read as such, or names an lm-eval task twice.
    """
    if isinstance(given, str) and given.endswith(".json"):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"task_map '{given}' cannot be read: {error}. Give {HOW_TO_MAP}.") from None
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, str):
        parts = [part.strip() for part in given.split(";") if part.strip()]
        pairs = [(name.strip(), task.strip()) for name, _, task in (part.rpartition(":") for part in parts)]
    else:
        pairs = [("", given)]
    if not pairs or not all(isinstance(x, str) and x for pair in pairs for x in pair):
        raise ConfigError(f"task_map {given!r} is no list of pairs. Give {HOW_TO_MAP}.")
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"task_map names {listing(twice)} more than once.")
    return dict(pairs)


def _adapter_config(adapter: str, revision: Mapping[str, str]) -> TaskLoraConfig:
    """Return the config of a saved adapter that a language model can take."""
    try:
        config = PeftConfig.from_pretrained(adapter, **revision)
    except TaskLoraError:
        raise
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"no adapter can be loaded from '{adapter}': {first_line(error)}") from error
    if not isinstance(config, TaskLoraConfig):
        raise CheckpointError(
            f"'{adapter}' is an adapter of PEFT's {config.peft_type.value}, not of tasklora: evaluate it with "
            f"--model hf --model_args pretrained=…,peft={adapter}."
        )
    if config.task_type not in LANGUAGE_MODELS:
        raise ConfigError(
            f"'{adapter}' was made for {config.task_type}; lm-eval scores and generates text with an adapter for "
            "CAUSAL_LM or SEQ_2_SEQ_LM."
        )
    return config


def _with_adapter(
    base: nn.Module, name: str, adapter: str, config: TaskLoraConfig, revision: Mapping[str, str]
) -> PeftModel:
    made_for = config.base_model_name_or_path
    if made_for and made_for != name:
        _log.warning("the adapter '%s' was made for base '%s'; it is evaluated on '%s'.", adapter, made_for, name)
    try:
        return PeftModel.from_pretrained(base, adapter, **revision)
    except TaskLoraError:
        raise
    except ValueError as error:  # PEFT's own, where no module of the base has the adapter's names
        raise CheckpointError(
            f"the adapter '{adapter}' (made for base '{made_for}') does not fit '{name}': {first_line(error)}"
        ) from error


tasklora_lm_eval.register()

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
