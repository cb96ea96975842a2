"""Mixed precision, torch.compile and determinism: what they change in a step, and what they must not change."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest
import torch
from method_cases import CASES
from torch import nn

import train
from vda.config import Config
from vda.device import use_deterministic_algorithms
from vda.errors import UsageError
from vda.options import Optimiser
from vda.precision import Precision, PrecisionName

MIXED: list[tuple[PrecisionName, torch.dtype]] = [("bf16", torch.bfloat16), ("fp16", torch.float16)]
every_case = pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("vat:") or "tube-" in name])


@every_case
@pytest.mark.parametrize(("precision", "dtype"), MIXED)
def test_a_step_computes_in_16_bits_and_learns_in_32(name: str, precision: PrecisionName, dtype: torch.dtype) -> None:
    plain, mixed = CASES[name].build("eval"), CASES[name].build("eval")
    wanted = train.step(plain, train.build_optimisers(plain, Optimiser(lr=1e-3)), *CASES[name].batches())
    seen = set()
    for module in mixed.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: seen.add(output.dtype))
    optimisers = train.build_optimisers(mixed, Optimiser(lr=1e-3))
    losses = train.step(mixed, optimisers, *CASES[name].batches(), Precision(precision))
    assert dtype in seen
    assert losses == {key: pytest.approx(value, rel=0.1, abs=0.02) for key, value in wanted.items()}
    states = [x for opt in optimisers.values() for state in opt.state.values() for x in state.values()]
    kept = [*mixed.parameters(), *(p.grad for p in mixed.parameters() if p.grad is not None), *states]
    assert {x.dtype for x in kept if isinstance(x, torch.Tensor)} <= {torch.float32}
    before = [p.detach().clone() for p in mixed.parameters()]
    taken = Precision(precision)
    for _ in range(1 if precision == "bf16" else 6):  # fp16 may first have to find a scale
        train.step(mixed, optimisers, *CASES[name].batches(), taken)
    assert any(not torch.equal(a, b) for a, b in zip(before, mixed.parameters(), strict=True))


class OneWeight(nn.Module):
    """A method with one weight; its loss is a sum, so that its gradient can be made to overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def losses(self, source: float, target: None) -> Iterator[dict[str, torch.Tensor]]:
        yield {"loss": source * self.weight}


def test_fp16_leaves_out_a_step_that_overflows_and_goes_on() -> None:
    method, precision = OneWeight(), Precision("fp16")
    optimisers = {"network": torch.optim.SGD(method.parameters(), lr=0.5)}
    scale = precision.state_dict()["scale"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train.step(method, optimisers, 1e37, None, precision)  # type: ignore[arg-type]
        assert method.weight.item() == 1.0
        assert precision.state_dict()["scale"] == scale / 2
        train.step(method, optimisers, 0.25, None, precision)  # type: ignore[arg-type]
        assert method.weight.item() == 1.0 - 0.5 * 0.25  # the gradient is unscaled
    other = Precision("fp16")
    other.load_state_dict(precision.state_dict())
    assert other.state_dict() == precision.state_dict() != Precision("fp16").state_dict()


def test_full_precision_and_bf16_scale_nothing() -> None:
    for name in ("fp32", "bf16"):
        assert Precision(name).state_dict() == {}  # type: ignore[arg-type]


def test_weights_stay_channels_last_through_steps() -> None:
    method = CASES["source_only"].build("train")
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train.step(method, train.build_optimisers(method, Optimiser()), *CASES["source_only"].batches())
    convolutions = [m for m in method.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert convolutions
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    assert all(m.weight.grad.is_contiguous(memory_format=torch.channels_last) for m in convolutions)


# ---- torch.compile


def test_a_compiled_network_takes_the_same_steps() -> None:
    """Both passes of an adversarial step: in training mode, and with statistics that are left alone."""
    wanted, found = CASES["vat:tube-sequence"].build("train"), CASES["vat:tube-sequence"].build("train")
    found.network.compile(backend="aot_eager")
    assert "_levels" in vars(found.network)  # what every method calls, be it for logits or for the maps before them
    for _ in range(2):
        losses = [
            train.step(
                method, train.build_optimisers(method, Optimiser(lr=1e-4)), *CASES["vat:tube-sequence"].batches()
            )
            for method in (wanted, found)
        ]
        assert losses[1] == {key: pytest.approx(value, rel=1e-4) for key, value in losses[0].items()}
    assert wanted.state_dict().keys() == found.state_dict().keys()
    for key, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_compile_wants_whole_batches() -> None:
    with pytest.raises(UsageError, match="setting compile: wanted frames_at_once of 0 beside it, found 2"):
        Config(compile=True, frames_at_once=2)


# ---- determinism


def test_deterministic_turns_on_what_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "unset by the test at its end")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        use_deterministic_algorithms()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
