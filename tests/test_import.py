"""`import tinydiff` is light, and its public names are where the design says."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import tinydiff as td

ROOT = Path(__file__).parent.parent
HEAVY = "matplotlib sklearn accelerate scipy diffusers IPython tyro pandas torchvision".split()

# CPU seconds, not the clock's: a busy machine changes them little, so no margin is needed (0.06 when written)
LIMIT = 0.25

PROBE = """
import json, sys, time
import torch
start, cpu = time.perf_counter(), time.process_time()
import tinydiff
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps([seconds, cpu, sorted(sys.modules)]))
"""


def probe() -> tuple[float, float, list[str]]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}  # or each import compiles anew
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    return tuple(json.loads(done.stdout))


@pytest.fixture(scope="module")
def probes():
    probe()  # compiles what is not compiled yet
    return [probe() for _ in range(3)]


def test_import_brings_nothing_heavy(probes):
    loaded = set(probes[0][2])
    assert {"torch", "tinydiff.training"} <= loaded
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


def test_import_is_quick(probes):
    assert statistics.median(cpu for _, cpu, _ in probes) < LIMIT


NAMES = """
DiscreteVP VP SubVP VE EDM Cosine Flow Shifted Schedule Coefs linear_betas cosine_betas scaled_linear_betas grid
targets.x0 targets.eps targets.v targets.score targets.velocity targets.edm Prediction encode decode
Denoiser NetDenoiser denoiser GaussianMixture IdealDenoiser
State final sample posterior ddim_step ancestral ddim sampler bind thresholded static
denoising_loss fit EMA Step constant warmup_cosine
save_checkpoint load_checkpoint load_pretrained
models.MLP models.UNet models.DiT models.dit.DiT_S_2 models.cost.macs
datasets.swiss_roll datasets.digits_train datasets.digits_test
metrics.sliced_wasserstein metrics.energy_distance metrics.digit_accuracy plotting.scatter plotting.image_grid
schedules.Schedule denoisers.c_noise_ddpm losses.stratified_times samplers.pairs guidance.bind training.fit
checkpoints.read_checkpoint exact.GaussianMixture setup scale show_source progress __version__
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_public_name(name):
    thing = td
    for part in name.split("."):
        thing = getattr(thing, part)


def test_public_modules_in_a_fresh_process():
    """Reachable by `import tinydiff` alone, and not because some test has imported the module."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    code = "import tinydiff as td; td.metrics, td.plotting, td.datasets, td.models.UNet, td.samplers, td.check"
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
