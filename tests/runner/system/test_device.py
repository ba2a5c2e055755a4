"""What is chosen by what the machine has."""

from pathlib import Path

import pytest
import torch

from runner.config.training import Training
from runner.system import device
from runner.system.device import Precision
from runner.system.errors import UserError


@pytest.mark.parametrize(("speedup", "chosen"), [(0.0, "float32"), (0.5, "float32"), (1.2, "float32"), (2.5, "bf16")])
def test_a_cpu_computes_in_bf16_only_where_that_is_quicker(
    speedup: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(device, "bf16_speedup", lambda cache: speedup)
    assert Training().resolved().precision is Precision(chosen)
    assert Training(precision=Precision.bf16).resolved().precision is Precision.bf16  # asked for is asked for


@pytest.mark.parametrize(
    ("bf16", "capability", "chosen"), [(True, (9, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "float32")]
)
def test_a_gpu_computes_in_the_best_that_it_has(
    bf16: bool, capability: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    assert Training().resolved().precision is Precision(chosen)
    if capability < (8, 0):
        with pytest.raises(UserError, match=r"precision=tf32 .* an old GPU does not have it"):
            Training(precision=Precision.tf32).resolved()


@pytest.mark.parametrize("precision", [Precision.tf32, Precision.fp16])
def test_what_the_machine_lacks_is_refused(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"precision={precision.value} .* needs an NVIDIA GPU"):
        Training(precision=precision).resolved()


def test_the_rate_of_bf16_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device.bf16_speedup.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert device.bf16_speedup() == 0
    device.bf16_speedup.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert device.bf16_speedup() > 0
    # Once for all processes that share a folder: they must not choose differently because one was disturbed.
    measured = device.bf16_speedup(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    device.keep_bf16_speedup(tmp_path / "cache")
    assert measured > 0
    device.bf16_speedup.cache_clear()
    monkeypatch.setattr(device, "_measured_bf16_speedup", lambda: measured + 1)
    assert device.bf16_speedup(tmp_path / "cache") == measured
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text("")
    device.bf16_speedup.cache_clear()
    assert device.bf16_speedup(tmp_path / "cache") == pytest.approx(measured + 1)
    device.bf16_speedup.cache_clear()


def test_a_forward_pass_computes_in_the_precision_and_leaves_the_settings_as_they_were() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.rand(2, 4)
    before = torch.get_float32_matmul_precision()
    kinds = {Precision.float32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
    for precision, kind in kinds.items():
        with device.computing(precision):
            assert layer(x).dtype is kind
            assert torch.get_float32_matmul_precision() == "highest"
    with device.computing(Precision.tf32):
        assert torch.get_float32_matmul_precision() == "high"
        with device.computing(Precision.float32):  # scores of record, whatever is around them
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    assert layer(x).dtype is torch.float32


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc_minimal.so.4")
    assert device.keep_freed_memory() is False


def test_memory_is_counted_in_bytes() -> None:
    before = device.peak_memory()
    assert before is not None
    held = torch.ones(300_000_000 // 4)
    after = device.peak_memory()
    assert after is not None
    assert 250e6 < after < 64e9
    assert after >= held.nbytes
