"""The arithmetic of the benchmarks: cases and their keys, bytes and FLOPs, samples and verdicts."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import Case
from benchmarks.ceilings import roofline_share
from benchmarks.compare import verdict
from benchmarks.environment import parse_clocks
from benchmarks.models import NETWORKS
from benchmarks.names import UnknownNameError, find
from benchmarks.ops import OPERATIONS, parse
from benchmarks.ops.conv2d import WindowShape
from benchmarks.ops.max_pool2d import PoolShape
from benchmarks.ops.network import NetworkShape
from benchmarks.ops.rnn import RnnShape
from benchmarks.suites import SUITES, Selected, in_turn, select, telling
from benchmarks.suites.derive import layers
from benchmarks.timing import Limits, Summary, interleave, ratio, summarize

CONV = WindowShape(32, 64, 56, 56, 128, 3, 3, stride=(2, 1), padding=(1, 1))


def case(op: str, shape, direction: str = "fprop", dtype: str = "bf16") -> Case:
    return Case(OPERATIONS[op], direction, dtype, "nchw", shape)


def test_a_key_names_everything_and_can_be_parsed() -> None:
    key = case("conv2d", CONV, "dgrad").key
    assert key == "conv2d/dgrad/bf16/nchw/N=32,C=64,H=56,W=56,K=128,R=3,S=3,stride=2x1,padding=1"
    assert parse(key) == case("conv2d", CONV, "dgrad")


@pytest.mark.parametrize("suite", SUITES)
def test_the_key_of_every_case_of_a_suite_can_be_parsed(suite: str) -> None:
    cases = select([suite], ["bf16"], ["nchw"])
    assert cases
    for selected in cases:
        assert parse(selected.case.key) == selected.case
        assert parse(selected.case.shrunk().key).op == selected.case.op


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("conv2d/fprop/bf16/nchw", "expected OP/DIRECTION/DTYPE/LAYOUT/SHAPE"),
        ("conv3d/fprop/bf16/nchw/N=1", "unknown op 'conv3d'; nearest: conv2d"),
        ("conv2d/fprob/bf16/nchw/N=1", "nearest: fprop"),
        ("conv2d/fprop/bf61/nchw/N=1", "nearest: bf16"),
        ("conv2d/fprop/bf16/nchw/N=1,strid=2", "nearest: stride"),
        ("conv2d/fprop/bf16/nchw/N=1,C=2", "lacks H, W, K, R, S"),
        ("conv2d/fprop/bf16/nchw/N=", "expected NAME=VALUE"),
    ],
)
def test_the_error_for_a_wrong_name_suggests_the_nearest(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(key)


def test_the_error_for_a_name_that_resembles_nothing_lists_all_names() -> None:
    with pytest.raises(UnknownNameError, match="known: cuda, torch"):
        find("engine", "???", ["cuda", "torch"])


def test_flops_and_bytes_of_convolution() -> None:
    product = 2 * 32 * 128 * 28 * 56 * 64 * 9
    moved = 2 * (32 * 64 * 56 * 56 + 128 * 64 * 9 + 32 * 128 * 28 * 56)
    for direction in ("fprop", "dgrad", "wgrad"):
        assert (case("conv2d", CONV, direction).flops, case("conv2d", CONV, direction).bytes) == (product, moved)
    assert (case("conv2d", CONV, "train").flops, case("conv2d", CONV, "train").bytes) == (3 * product, 3 * moved)
    assert case("conv2d", CONV, dtype="fp32").bytes == 2 * moved
    grouped = WindowShape(1, 8, 4, 4, 8, 3, 3, padding=(1, 1), groups=8, bias=1)
    assert case("conv2d", grouped).flops == 2 * 8 * 16 * 9
    assert case("conv2d", grouped).bytes == 2 * (8 * 16 + 8 * 9 + 8 + 8 * 16)


def test_flops_are_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for op, shape in (("conv2d", CONV), ("conv_transpose2d", CONV)):
        measured = case(op, shape, dtype="fp32").shrunk()
        call = measured.operation.call(measured, measured.operation.tensors(measured, torch.device("cpu"), 0), "eager")
        with FlopCounterMode(display=False) as counter:
            call()
        assert measured.flops == counter.get_total_flops()


def test_bytes_of_pooling_count_one_per_window() -> None:
    shape = PoolShape(2, 3, 8, 8, (2, 2), (2, 2))
    x, y = 2 * 3 * 64, 2 * 3 * 16
    assert case("max_pool2d", shape).bytes == 2 * (x + y)
    assert case("max_pool2d", shape, "dgrad").bytes == 2 * (x + y) + y
    assert case("max_pool2d", shape, "train").bytes == 2 * (2 * (x + y) + y)


def test_flops_and_bytes_of_recurrence() -> None:
    shape = RnnShape(T=5, N=3, I=7, H=11, layers=2, directions=2)
    weights = 2 * (11 * 7 + 11 * 11) + 2 * (11 * 22 + 11 * 11)
    assert case("rnn", shape).flops == 2 * 5 * 3 * weights
    assert case("rnn", shape, "train").flops == 6 * 5 * 3 * weights
    inputs = 5 * 3 * 7 + 4 * 3 * 11 + weights + 8 * 11
    output = 5 * 3 * 22
    assert case("rnn", shape).bytes == 2 * (inputs + output)
    assert case("rnn", shape, "train").bytes == 2 * (2 * (inputs + output) + inputs)


def test_sizes_are_those_of_the_call() -> None:
    for op, shape in (
        ("conv2d", CONV),
        ("fold", CONV),
        ("unfold", CONV),
        ("conv_transpose2d", CONV),
        ("rnn", RnnShape(3, 2, 4, 5, 2, 2)),
    ):
        measured = Case(OPERATIONS[op], "fprop", "fp32", "nchw", OPERATIONS[op].shrink(shape))
        tensors = measured.operation.tensors(measured, torch.device("cpu"), 0)
        (result,) = measured.operation.call(measured, tensors, "eager")()
        assert tuple(result.shape) == measured.operation.output(measured.shape)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_inputs_have_the_layout_and_follow_the_seed(layout: str) -> None:
    measured = Case(OPERATIONS["conv2d"], "fprop", "bf16", layout, CONV).shrunk()
    first, same, other = (measured.operation.tensors(measured, torch.device("cpu"), seed) for seed in (1, 1, 2))
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    for name in ("x", "w", "dy"):
        assert first[name].is_contiguous(memory_format=form)
        assert torch.equal(first[name], same[name])
        assert not torch.equal(first[name], other[name])


def test_a_shrunk_case_keeps_its_geometry() -> None:
    shape = WindowShape(32, 67, 224, 225, 130, 7, 7, stride=(2, 2), padding=(3, 3))
    small = OPERATIONS["conv2d"].shrink(shape)
    assert (small.R, small.S, small.stride, small.padding, small.groups) == (7, 7, (2, 2), (3, 3), 1)
    assert (small.C % 8, small.K % 8, small.H % 2, small.W % 2) == (67 % 8, 130 % 8, 0, 1)
    assert min(small.P, small.Q) >= 3
    assert OPERATIONS["conv2d"].flops(small, "fprop") < 2e6
    depthwise = OPERATIONS["conv2d"].shrink(WindowShape(8, 96, 14, 14, 96, 3, 3, groups=96))
    assert depthwise.C == depthwise.groups == depthwise.K


def test_layers_are_read_off_the_model() -> None:
    torch.manual_seed(0)
    shared = torch.nn.Conv2d(4, 4, 3, padding=1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2, bias=False), shared, shared, torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.MaxPool2d(2)
    )
    entries = layers(model, torch.rand(2, 3, 9, 9))
    assert [(entry.op, entry.directions, entry.labels) for entry in entries] == [
        ("conv2d", ("fprop", "wgrad"), ("0",)),
        ("conv2d", ("fprop", "dgrad", "wgrad"), ("1", "1", "3")),
        ("max_pool2d", ("fprop", "dgrad"), ("4",)),
    ]
    assert entries[0].shape == WindowShape(2, 3, 9, 9, 4, 3, 3, stride=(2, 2))
    assert entries[1].shape == WindowShape(2, 4, 4, 4, 4, 3, 3, padding=(1, 1), bias=1)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_networks_have_their_published_layers() -> None:
    convolutions = {name: sum(len(entry.labels) for entry in SUITES[name].entries if entry.op == "conv2d") for name in NETWORKS}
    assert convolutions == {"lenet5": 3, "alexnet": 5, "googlenet": 57, "resnet18": 20, "resnet50": 53, "densenet121": 120}
    flops = OPERATIONS["network"].flops(NetworkShape("resnet50", 1, 224), "train") / 3
    assert flops == pytest.approx(2 * 4.1e9, rel=0.02)  # the 4.1 GMAC that are usually quoted


def test_a_suite_has_each_case_once_and_a_budget_takes_the_telling_ones_first() -> None:
    cases = select(["resnet18", "resnet50"], ["bf16"], ["channels_last", "nchw"])
    assert len({selected.case.key for selected in cases}) == len(cases)
    assert any(selected.suites == ["resnet18", "resnet50"] for selected in cases)
    first = telling(cases)
    assert sorted(selected.case.key for selected in first) == sorted(selected.case.key for selected in cases)
    directions = {selected.case.direction for selected in first[:12]}
    assert directions >= {"fprop", "dgrad", "wgrad"}


def test_in_turn() -> None:
    made = [Selected(case("conv2d", CONV), [], [str(i)]) for i in range(5)]
    order = in_turn([made[:1], made[1:4], made[4:]])
    assert [selected.labels[0] for selected in order] == ["0", "1", "4", "2", "3"]


def test_summary_is_median_and_quartiles() -> None:
    summary = summarize([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (summary.median, summary.q1, summary.q3, summary.samples) == (3, 2, 4, 5)
    assert summary.spread == pytest.approx(2 / 3)
    assert summary.scaled(2) == Summary(6, 4, 8, 5)
    assert summarize([7.0]) == Summary(7, 7, 7, 1)
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


def test_a_ratio_is_the_median_of_pairs() -> None:
    """If the GPU's clock rate is lower in one round, both times of that round are longer, and their ratio is the same."""
    ours, theirs = [1.0, 1.0, 3.0], [2.0, 2.0, 6.0]
    assert ratio(ours, theirs) == Summary(2, 2, 2, 3)
    with pytest.raises(ValueError, match="longer"):
        ratio([1.0], [1.0, 2.0])


def test_sampling_alternates_and_stops_when_steady() -> None:
    order: list[str] = []

    def sampler(name: str):
        def sample() -> float:
            order.append(name)
            return 1.0

        return sample

    samples = interleave({"a": sampler("a"), "b": sampler("b")}, Limits(least=4, most=100, seconds=10), clock=lambda: 0.0)
    assert {name: len(drawn) for name, drawn in samples.items()} == {"a": 4, "b": 4}
    assert order[:6] == ["a", "b", "b", "a", "a", "b"]


def test_sampling_of_the_unsteady_stops_at_the_limits() -> None:
    def unsteady():
        values = iter(range(1, 1000))
        return lambda: float(next(values))

    samples = interleave({"a": unsteady()}, Limits(least=2, most=7, seconds=10), clock=lambda: 0.0)
    assert len(samples["a"]) == 7
    ticks = iter(range(100))
    samples = interleave({"a": unsteady()}, Limits(least=2, most=50, seconds=3), clock=lambda: float(next(ticks)))
    assert len(samples["a"]) == 5


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((100, 99, 101), (90, 89, 91), "FASTER"),
        ((100, 99, 101), (110, 109, 111), "SLOWER"),
        ((100, 99, 101), (101, 100, 102), "SAME"),
        ((100, 90, 110), (95, 85, 105), "UNSURE"),  # the medians differ, but the ranges overlap
        ((100, 90, 110), (101, 91, 111), "UNSURE"),  # the medians agree, but the spread would hide a change
        ((100, 100, 100), (101.9, 101.9, 101.9), "SAME"),  # the ranges do not overlap, but the difference is within the tolerance
    ],
)
def test_verdicts(old, new, expected: str) -> None:
    assert verdict(Summary(*old, 10), Summary(*new, 10)) == expected


def test_share_of_the_roofline() -> None:
    ceilings = {"copy_gb_s": 1000, "product_tflop_s": {"bf16": 100}}
    assert roofline_share(10**12, 10**6, "bf16", 0.02, ceilings) == pytest.approx(0.5)  # the FLOPs need 10 ms at least
    assert roofline_share(10, 10**9, "bf16", 0.004, ceilings) == pytest.approx(0.25)  # the bytes need 1 ms at least
    assert roofline_share(10, 10**9, "fp16", 0.004, ceilings) is None


def test_clocks_are_parsed() -> None:
    assert parse_clocks("1980, 2619, 356.21, 41, 0x0000000000000000") == {
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "power_w": 356.21,
        "temperature_c": 41,
        "throttled": False,
    }
    assert parse_clocks("1200, [N/A], 700, 80, 0x0000000000000004")["throttled"] is True
    assert parse_clocks("1200, [N/A], 700, 80, 0x0000000000000001")["throttled"] is False  # the GPU is idle
    assert parse_clocks("1200, [N/A], 700, 80, [N/A]")["memory_mhz"] is None
