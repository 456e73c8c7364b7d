"""How the benchmarks measure: variants in turn, ratios with their spread, bytes counted exactly.

Absolute times of one machine say little; a ratio of two variants that ran side by side says more. So the variants of
a setting run one after the other in every round, the order turning from round to round, and what is reported is the
median over the rounds of the ratio *within* a round, with its quartiles.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import statistics
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# PEFT asks a transformers of today for a name of yesterday; nothing that is measured here depends on it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

SIZES = ("tiny", "short", "full", "gpu")
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles; the three are one number where something is counted and not timed."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return median and quartiles of `values`."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @classmethod
    def of_ratios(cls, above: Sequence[float], below: Sequence[float]) -> Spread:
        """Return median and quartiles of the ratios within each round."""
        return cls.of([a / b for a, b in zip(above, below, strict=True)])

    def over(self, other: Spread) -> Spread:
        """Return the quotient of two spreads that were not measured together, with the widest quartiles."""
        return Spread(self.median / other.median, self.low / other.high, self.high / other.low)


@dataclass(frozen=True)
class Measurement:
    """One line of the table: what was measured in which setting."""

    setting: str
    quantity: str
    value: Spread
    unit: str = "×"


def synchronise(device: str) -> None:
    """Wait for the accelerator; on a CPU there is nothing to wait for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, warmup: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Time the variants in turn.

    Args:
        variants: name → what to run.
        rounds: how often each of them is timed; the order turns by one from round to round.
        warmup: rounds before those, not timed.
        device: where the variants compute.

    Returns:
        Name → seconds of each round.
    """
    names = list(variants)
    times: Times = {name: [] for name in names}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would fall on whichever variant is running
    try:
        for round_ in range(-warmup, rounds):
            for name in (names[(round_ + i) % len(names)] for i in range(len(names))):
                synchronise(device)
                begin = time.perf_counter()
                variants[name]()
                synchronise(device)
                if round_ >= 0:
                    times[name].append(time.perf_counter() - begin)
    finally:
        if was_enabled:
            gc.enable()
    return times


@dataclass(frozen=True)
class Bytes:
    """Bytes of tensors allocated during a call: the most alive at once, and those alive at its end."""

    peak: int
    kept: int


class _CountsStorages(TorchDispatchMode):
    """Adds up the storages that operations make, each once, and subtracts each when it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()
        self._ends: list[weakref.finalize] = []

    def _storages(self, tree: object) -> list[torch.UntypedStorage]:
        return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        self._ends.append(weakref.finalize(storage, self._forget, key, size))

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in self._storages((args, kwargs)):
            self._note(storage, 0)  # an input that no operation has made was there before
        result = operation(*args, **(kwargs or {}))
        for storage in self._storages(result):
            self._note(storage, storage.nbytes())
        return result

    def stop(self) -> None:
        """Forget the storages that are still alive."""
        for end in self._ends:
            end.detach()


def peak_bytes(function: Callable[[], object], device: str = "cpu") -> Bytes:
    """Count the bytes of tensors that `function` allocates, without noise.

    On a CPU every operation is watched: exact for what operations return, blind to scratch memory inside a kernel. On
    an accelerator the allocator's own count is taken, which sees both.

    Args:
        function: what to run; what it returns is held until the bytes alive at the end are counted.
        device: where it computes.
    """
    gc.collect()
    if device.startswith("cuda"):
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        held = function()
        synchronise(device)
        counted = torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
        del held
        return Bytes(*counted)
    with _CountsStorages() as counter:
        held = function()
        counted = counter.peak, counter.alive
    counter.stop()
    del held
    return Bytes(*counted)


@dataclass
class Report:
    """What one benchmark found.

    Attributes:
        benchmark: its name.
        size: one of SIZES.
        device: where it computed.
        measurements: the lines of the table.
        times: setting → variant → seconds of each round, from which the ratios were made.
    """

    benchmark: str
    size: str
    device: str = "cpu"
    measurements: list[Measurement] = field(default_factory=list)
    times: dict[str, Times] = field(default_factory=dict)

    def time(self, setting: str, variants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> Times:
        """Time the variants in turn and keep the times."""
        print(f"{self.benchmark}: {setting}", file=sys.stderr, flush=True)
        times = interleaved(variants, rounds, warmup, self.device)
        self.times.setdefault(setting, {}).update(times)
        return times

    def ratio(self, setting: str, what: str, above: str, below: str) -> Spread:
        """Add the ratio of the times of two variants of a setting."""
        times = self.times[setting]
        value = Spread.of_ratios(times[above], times[below])
        self.measurements.append(Measurement(setting, f"{what}: {above} / {below}", value))
        return value

    def number(self, setting: str, quantity: str, value: float | Spread, unit: str = "×") -> None:
        """Add a number, with or without a spread."""
        spread = value if isinstance(value, Spread) else Spread.of([float(value)])
        self.measurements.append(Measurement(setting, quantity, spread, unit))

    def write(self, directory: Path) -> Path:
        """Write speed-NAME.json, whole or not at all."""
        from tasklora.evaluation import write_text_whole

        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"speed-{self.benchmark}.json"
        data = {"format": "tasklora/benchmark", "version": 1, **facts(self.device), **asdict(self)}
        write_text_whole(path, json.dumps(data, indent=2) + "\n")
        return path


def facts(device: str) -> dict[str, Any]:
    """Return what is needed to repeat a measurement: command, commit, versions, machine, date."""
    from tasklora.evaluation.results import machine_description, package_versions, source_commit

    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": source_commit(),
        "device": device,
        "versions": package_versions(),
        "machine": {**machine_description(), "processor": _processor()},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full", help="how large; tiny only shows that it runs")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (with --size gpu)")
    parser.add_argument("--output", type=Path, help="write speed-NAME.json into this directory")
    return parser


def main(benchmark: str, measure: Callable[[Report], None], description: str | None) -> None:
    """Run one benchmark from the command line and print its table."""
    from goals import print_table

    options = arguments(description).parse_args()
    report = Report(benchmark, options.size, options.device)
    measure(report)
    print_table([report])
    if options.output:
        print(f"written: {report.write(options.output)}")
