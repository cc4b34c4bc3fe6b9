"""How `fit` computes changes nothing but speed: micro-batches, processes, precision, formats, a run cut short."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import tinydiff as td
from tinydiff import losses
from tinydiff.hardware import Hardware, within
from tinydiff.logs import logged, read_log
from tinydiff.training import drop_labels

ROOT = Path(__file__).parent.parent


def denoiser(net=None):
    torch.manual_seed(0)
    return td.NetDenoiser(net or td.models.MLP(width=16, depth=2, classes=3), td.Cosine(), td.targets.v)


def data(n: int = 100):
    return dict(x0=td.datasets.swiss_roll(n, seed=0), y=torch.arange(n) % 3)


def run(steps: int = 5, d=None, **options):
    d = d or denoiser()
    options = dict(batch_size=8, ema=0.5) | options
    return [step.loss for step in td.fit(d, data(), steps=steps, **options)], d


def weights(d) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in d.net.parameters()])


# ---- micro-batches and processes -----------------------------------------------------------------


def test_micro_batches_make_the_step_of_their_whole():
    """By hand: two halves, each with the random numbers of (seed, step, part), one gradient of their mean."""
    from tinydiff.training import random_numbers_of

    d, seen = denoiser(), []

    def loss(d, x0, t, **cond):
        seen.append((x0, t, cond["y"]))
        return td.denoising_loss(d, x0, t, **cond)

    options = dict(optimizer=torch.optim.SGD, lr=0.1, clip=1e9, loss=loss)
    (value,), d = run(1, d, on=Hardware(accumulate=2), **options)
    assert [len(x0) for x0, _, _ in seen] == [4, 4] and not torch.equal(seen[0][0], seen[1][0])
    other, total = denoiser(), 0.0
    for part in (0, 1):
        with random_numbers_of(0, 0, torch.device("cpu"), part):
            i = torch.randint(100, (4,))
            batch = {k: v[i] for k, v in data().items()}
            t = losses.stratified_times(4)
            total = total + td.denoising_loss(other, t=t, **batch).mean() / 2
    grads = torch.autograd.grad(total, list(other.net.parameters()))
    with torch.no_grad():
        for p, g in zip(other.net.parameters(), grads, strict=True):
            p -= 0.1 * g
    assert value == pytest.approx(total.item(), rel=1e-6)
    torch.testing.assert_close(weights(d), weights(other))


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(ValueError, match="batch_size must divide by the 3 micro-batches of a step; got 8"):
        run(on=Hardware(accumulate=3))


LAUNCH = "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1"
LAUNCH += " --mixed_precision no --dynamo_backend no --main_process_port 0"


def python(*argv: str, **more: str) -> None:
    """Runs Python in a process of its own. Raises AssertionError with what it printed if it fails."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more
    done = subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture
def launch(tmp_path):
    """Runs Python in two CPU processes that accelerate launches; skips where they cannot add two numbers."""
    run = partial(python, *LAUNCH.split(), ACCELERATE_USE_CPU="true")
    script = tmp_path / "sum.py"
    script.write_text(
        "import torch, accelerate\n"
        "a = accelerate.Accelerator(cpu=True)\n"
        "assert a.reduce(torch.ones(1), 'sum').item() == a.num_processes == 2\n"
        "a.end_training()\n"
    )
    try:
        run(str(script))
    except (AssertionError, subprocess.TimeoutExpired) as error:  # a sandbox without sockets, say
        pytest.skip(f"two processes cannot talk to each other on this machine: {str(error)[-1500:]}")
    return run


def test_two_processes_train_as_one_that_accumulates(tmp_path, launch):
    """`accelerate launch` with two CPU processes and one process with both halves: equal losses, equal weights."""
    settings = "--steps 4 --batch-size 8 --width 8 --mults 1 2 --samples 20 --sampling-steps 2 --warmup 1 --threads 1"
    alone, both = tmp_path / "alone.safetensors", tmp_path / "both.safetensors"
    train = ["-m", "tinydiff", "train", "fashion_unet", *settings.split()]
    python(*train, "--accumulate", "2", "--out", str(alone))
    launch(*train, "--out", str(both))
    (*first, end), (*second, other) = (read_log(path.with_suffix(".jsonl")) for path in (alone, both))
    assert end["step"] == other["step"] == 4 and end["fd"] == pytest.approx(other["fd"], rel=1e-2)  # the metrics
    assert [line["step"] for line in first] == [line["step"] for line in second] == [1, 2, 3, 4]
    assert [line["loss"] for line in first] == pytest.approx([line["loss"] for line in second], rel=1e-5)
    a, b = td.load_checkpoint(alone), td.load_checkpoint(both)
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-4, atol=1e-5)


def test_times_outside_their_range_are_named_by_fit_itself():
    """On a GPU the schedule does not look at them while training."""
    blind = dict(loss=lambda d, x0, t, **cond: d.net(x0, t, **cond).square().mean(1))
    late = lambda n, device: torch.linspace(0.5, 1.5, n, device=device)  # noqa: E731
    with pytest.raises(ValueError, match=r"times must draw t in \[0, 1\]; got 0.5 to 1.5"):
        run(times=late, **blind)


# ---- precision, formats, compilation -------------------------------------------------------------


def small_unet():
    torch.manual_seed(0)
    return denoiser(td.models.UNet(width=8, mults=(1, 2), classes=3))


def images(n: int = 12):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, 8, 8), generator=g, dtype=torch.uint8)
    return td.datasets.Images(pixels, torch.arange(n) % 3, ("a", "b", "c"))


def fit_images(on=Hardware(), steps=3, source=None):  # noqa: B008
    d = small_unet()
    return [s.loss for s in td.fit(d, source or images(), steps=steps, batch_size=4, on=on)], d


def test_channels_last_changes_nothing():
    plain, a = fit_images()
    other, b = fit_images(Hardware(channels_last=True))
    assert plain == pytest.approx(other, rel=1e-4)
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-2, atol=2e-4)
    assert b.net.first.weight.is_contiguous(memory_format=torch.channels_last)


def test_bf16_is_near_and_leaves_the_weights_in_float32():
    plain, a = fit_images()
    half, b = fit_images(Hardware(precision="bf16"))
    assert half != plain and half == pytest.approx(plain, rel=1e-3)  # found at three seeds: within 2.1e-5
    assert {p.dtype for p in b.net.parameters()} == {torch.float32}
    working = Hardware(precision="bf16").prepare(b)
    x = torch.randn(2, 1, 8, 8)
    assert working(x, 0.5).x0.dtype == torch.float32


def test_bf16_keeps_the_schedule_in_float32():
    """Only the network's products are rounded: what the loss compares with is not."""
    seen = []

    class Echo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, noise_level):
            seen.append((x.dtype, noise_level.dtype, torch.is_autocast_enabled("cpu")))
            return self.w * x

    d = td.NetDenoiser(Echo(), td.Cosine(), td.targets.v)
    loss = lambda d, x0, t: seen.append(torch.is_autocast_enabled("cpu")) or td.denoising_loss(d, x0, t)  # noqa: E731
    next(iter(td.fit(d, torch.randn(8, 2), steps=1, loss=loss, batch_size=4, on=Hardware(precision="bf16"))))
    assert seen == [False, (torch.float32, torch.float32, True)]


def test_compile_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda net: asked.append(net) or net)
    losses_, d = fit_images(Hardware(compile=True))
    assert asked == [d.net] and losses_ == fit_images()[0]


def test_plain_hardware_is_the_denoiser_itself():
    d = denoiser()
    assert Hardware().prepare(d) is d and Hardware(accumulate=4).prepare(d) is d


def test_settings_of_hardware_are_checked():
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16; got 'fp16'"):
        Hardware(precision="fp16")
    with pytest.raises(ValueError, match="accumulate must be at least 1; got 0"):
        Hardware(accumulate=0)


# ---- data on the device, as bytes ----------------------------------------------------------------


def test_images_give_the_batches_of_their_tensors():
    source = images()
    as_bytes, a = fit_images(source=source)
    as_floats, b = fit_images(source=dict(x0=source.x0, y=source.y))
    assert as_bytes == as_floats and torch.equal(weights(a), weights(b))


# ---- a run cut short -----------------------------------------------------------------------------


def test_minutes_end_a_run_that_goes_on_bit_for_bit(tmp_path):
    whole, d = run(6)
    path = tmp_path / "run.safetensors"
    first, _ = run(6, checkpoint=path, every=100, minutes=0.0)
    assert len(first) == 1 and path.exists()
    rest, again = run(6, checkpoint=path, resume=True)
    assert first + rest == whole and torch.equal(weights(d), weights(again))


def test_within_counts_minutes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tinydiff.hardware.time.monotonic", lambda: now[0])
    over, never = within(2.0), within(None)
    now[0] = 219.9
    assert not over() and not never()
    now[0] = 220.0
    assert over() and not never()


# ---- labels, logs --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_dropped_with_their_share(seed):
    torch.manual_seed(seed)
    y = torch.arange(20_000) % 3
    dropped = drop_labels(classes=3, share=0.1)({"x0": y, "y": y})["y"]
    share = (dropped == 3).double().mean().item()
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5  # four standard errors
    assert torch.equal(dropped[dropped != 3], y[dropped != 3])
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]; got 2.0"):
        drop_labels(3, share=2.0)


def test_a_log_holds_means_and_goes_on(tmp_path):
    path = tmp_path / "deep" / "run.jsonl"
    d = denoiser()
    losses_ = [s.loss for s in logged(td.fit(d, data(), steps=5, batch_size=8), path, every=2)]
    lines = read_log(path)
    assert [line["step"] for line in lines] == [2, 4, 5]
    means = [sum(losses_[:2]) / 2, sum(losses_[2:4]) / 2, losses_[4]]
    assert [line["loss"] for line in lines] == pytest.approx(means)
    assert all(a["seconds"] <= b["seconds"] for a, b in zip(lines, lines[1:], strict=False))
    list(logged(td.fit(denoiser(), data(), steps=2, batch_size=8), path, every=2))
    assert [line["step"] for line in read_log(path)] == [2, 4, 5, 2]
    path.write_text(json.dumps({"step": 1}) + "\n{half\n")
    with pytest.raises(ValueError, match="line 2 of .*run.jsonl is no JSON"):
        read_log(path)


def test_a_log_is_written_when_the_caller_stops(tmp_path):
    steps = logged(td.fit(denoiser(), data(), steps=50, batch_size=8), tmp_path / "run.jsonl", every=10)
    for step in steps:
        if step.number == 3:
            break
    steps.close()
    assert [line["step"] for line in read_log(tmp_path / "run.jsonl")] == [3]


def test_what_a_judge_says_stands_in_the_log_and_its_time_does_not(tmp_path, monkeypatch):
    """By a clock that goes on by 1 with each step, and by 100 with each question to the judge."""
    path, asked, clock = tmp_path / "run.jsonl", [], [0.0]
    monkeypatch.setattr("tinydiff.logs.time.perf_counter", lambda: clock[0])

    def judge(step):
        clock[0] += 100
        asked.append(step.number)
        return {"fd": 1.5}

    for _ in logged(td.fit(denoiser(), data(), steps=7, batch_size=8), path, every=2, judge=judge, judge_every=3):
        clock[0] += 1
    lines = read_log(path)
    assert asked == [3, 6] and [line["step"] for line in lines] == [2, 3, 4, 6, 7]
    assert [line.get("fd") for line in lines] == [None, 1.5, None, 1.5, None]
    assert [line["seconds"] for line in lines] == [1, 2, 3, 5, 7]  # the last line is written when all is over


def test_tensorboard_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        next(logged(td.fit(denoiser(), data(), steps=1), tmp_path / "run.jsonl", tensorboard=True))
