"""The benchmarks measure what they say: bytes are exact, peers compute the same update, every goal is measured."""

import json
import re
from pathlib import Path

import pytest
import torch
from goals import GOALS
from guard import BYTES_BOUND, TIME_BOUND, too_large
from harness import Measurement, Report, Spread, interleaved, peak_bytes
from models import Setting, contender
from packing import PERCENTILES, batches_of, drawn_rows, variants

from tasklora.tasks import load_suite

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
TINY = Setting("llama-64", "fp32", 6, 5)


def test_bytes_are_counted_once_and_only_while_alive():
    there_before = torch.zeros(1000)

    def call():
        first = there_before + 1  # 4,000 bytes
        second = first.double()  # 8,000 more
        del first
        return second.view(10, 100).add_(1)  # no new storage

    counted = peak_bytes(call)
    assert (counted.peak, counted.kept) == (12_000, 8_000)


def test_variants_take_turns_in_turning_order():
    called = []
    times = interleaved({name: lambda name=name: called.append(name) for name in "abc"}, rounds=3, warmup=0)
    assert "".join(called) == "abcbcacab"
    assert all(len(seconds) == 3 for seconds in times.values())


def test_ratios_are_made_within_a_round():
    spread = Spread.of_ratios([1.0, 20.0, 3.0], [1.0, 10.0, 1.0])
    assert (spread.low, spread.median, spread.high) == (1.5, 2.0, 2.5)


def test_the_published_form_computes_the_same_update():
    ours = contender("mtl_lora", TINY.model, TINY.dtype, "cpu", 3)
    peer = contender("per_sample_bmm", TINY.model, TINY.dtype, "cpu", 3)
    theirs = dict(peer.model.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.model.named_parameters():
            if parameter.requires_grad:
                plain = re.sub(r"^base_model\.model\.|task_updates\.default\.", "", name)
                match = theirs[plain]
                match.copy_(parameter if match.shape == parameter.shape else parameter.transpose(0, 1))
    input_ids, task_ids = TINY.input_ids("cpu"), torch.arange(TINY.rows) % 3
    torch.testing.assert_close(ours.call(input_ids, task_ids), peer.call(input_ids, task_ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_every_goal_is_measured_in_the_kept_results(goal):
    lines = json.loads((RESULTS / f"speed-{goal.benchmark}.json").read_text(encoding="utf-8"))["measurements"]
    assert any(line["quantity"] == goal.quantity and re.search(goal.where, line["setting"]) for line in lines)


def test_the_guard_finds_what_is_too_large(capsys):
    report = Report("guard", "short")
    report.number("here", "step: ours / theirs", 1.0 * TIME_BOUND + 0.01)
    report.number("here", "peak bytes: ours / theirs", 1.0 * BYTES_BOUND)
    kept = {("here", line.quantity): Spread.of([1.0]) for line in report.measurements}
    assert too_large(report, kept) == ["here: step: ours / theirs: 1.510, kept 1.000, at most 1.500"]
    assert "peak bytes: ours / theirs: 1.020, kept 1.000" in capsys.readouterr().out
    assert isinstance(report.measurements[0], Measurement)


@pytest.mark.parametrize("suite", PERCENTILES)
def test_lengths_are_kept_of_every_task(suite):
    assert set(PERCENTILES[suite]) <= set(load_suite(suite).tasks)
    assert all(len(counts) == 101 and counts == sorted(counts) for counts in PERCENTILES[suite].values())
    lengths, tasks = drawn_rows(suite, 32, 20)
    assert lengths.max() <= 20
    assert set(torch.bincount(tasks).tolist()) == {32 // len(PERCENTILES[suite])}


def test_padded_grouped_and_packed_batches_have_one_loss():
    lengths, tasks = torch.tensor([9, 2, 7, 1, 4, 9, 3, 5, 2, 2, 2, 3]), torch.arange(12) % 3
    whole = batches_of(torch.arange(12), lengths, tasks, 12, "cpu")
    model = contender("mtl_lora", "llama-64", "fp32", "cpu", 3).model
    losses = {name: run() for name, run in variants(model, True, whole, whole).items()}
    assert losses == pytest.approx(dict.fromkeys(losses, losses["padded"]), rel=1e-4)
