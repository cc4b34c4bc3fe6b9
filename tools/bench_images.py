"""Training throughput and memory of the U-Net and the DiT, against diffusers' at equal architecture and batch.

    python tools/bench_images.py                # all cases for this machine; part of `make bench`
    python tools/bench_images.py --case unet    # one of them

A measurement is `steps` steps of forward, mean squared error, backward and fused Adam, after three to warm up; the
median of `rounds` is given, with the range. On a CPU each is a process of its own, and ours and theirs take turns, so
that what else the machine does hits both alike; on a GPU one process measures one network after the other, all rounds
at once. Memory is the peak above what stood before the network: of the allocator on a GPU, of the process on a CPU.
Results go to data/results/benchmark_images.json, or benchmark_images_gpu.json, with how they were made, and to the
README.

Equal flags (precision, compile, channels-last) for both; what the flags gain over plain eager is a row of its own. On a
GPU model FLOP utilisation is printed: 6 multiply-accumulates' flops a sample, over the card's peak in bf16.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from tinydiff.hardware import Hardware  # noqa: E402
from tinydiff.models import DiT, UNet, cost  # noqa: E402
from tinydiff.progress import progress  # noqa: E402
from tinydiff.results import FOLDER, provenance, save_results  # noqa: E402

README = ROOT / "README.md"
RESULTS = {"cpu": "benchmark_images", "cuda": "benchmark_images_gpu"}
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense, of the makers' data sheets


@dataclass(frozen=True)
class Case:
    """shape: of a batch. flags: of Hardware, the same for both."""

    network: str
    shape: tuple[int, int, int, int]
    steps: int
    settings: dict[str, Any]
    flags: tuple[tuple[str, Any], ...] = ()


UNET_28 = dict(in_channels=1, width=32, mults=(1, 2), attention=(False, True), head_channels=8, features=32, groups=8)
UNET_CIFAR = dict(in_channels=3, width=128, mults=(1, 2, 2, 2), blocks=2, attention=(False, True, False, False))
UNET_CIFAR |= dict(middle_attention=True, condition="add", head_channels=256, groups=32, features=128)
DIT_28 = dict(in_channels=1, size=28, patch=4, width=128, depth=6, heads=4, classes=10)
DIT_B = dict(in_channels=4, size=32, patch=2, width=768, depth=12, heads=12, classes=1000)
FAST = (("precision", "bf16"), ("compile", True))
CPU = {
    "unet": Case("unet", (64, 1, 28, 28), 8, UNET_28),
    "dit": Case("dit", (64, 1, 28, 28), 12, DIT_28),
}
GPU = {
    "unet": Case("unet", (128, 3, 32, 32), 50, UNET_CIFAR),
    "unet, bf16": Case("unet", (128, 3, 32, 32), 50, UNET_CIFAR, (("precision", "bf16"),)),
    "unet, bf16 compiled": Case("unet", (128, 3, 32, 32), 50, UNET_CIFAR, (*FAST, ("channels_last", True))),
    "dit-b": Case("dit", (128, 4, 32, 32), 30, DIT_B),
    "dit-b, bf16": Case("dit", (128, 4, 32, 32), 30, DIT_B, (("precision", "bf16"),)),
    "dit-b, bf16 compiled": Case("dit", (128, 4, 32, 32), 30, DIT_B, FAST),
}


def ours(case: Case) -> nn.Module:
    return UNet(**case.settings) if case.network == "unet" else DiT(**case.settings)


class Theirs(nn.Module):
    """A network of diffusers, called as ours is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x, noise_level, y=None):
        return (self.net(x, noise_level) if y is None else self.net(x, noise_level, y)).sample


def theirs(case: Case) -> nn.Module:
    """The same architecture in diffusers. Its DiT embeds t and y anew in each block, which is a little more work."""
    import diffusers

    s = case.settings
    if case.network == "dit":
        return Theirs(
            diffusers.DiTTransformer2DModel(
                num_attention_heads=s["heads"],
                attention_head_dim=s["width"] // s["heads"],
                in_channels=s["in_channels"],
                out_channels=s["in_channels"],
                num_layers=s["depth"],
                sample_size=s["size"],
                patch_size=s["patch"],
                num_embeds_ada_norm=s["classes"],
            )
        )
    return Theirs(
        diffusers.UNet2DModel(
            sample_size=case.shape[-1],
            in_channels=s["in_channels"],
            out_channels=s["in_channels"],
            freq_shift=0,
            block_out_channels=tuple(m * s["width"] for m in s["mults"]),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in s["attention"]),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(s["attention"])),
            layers_per_block=s.get("blocks", 1),
            attention_head_dim=s["head_channels"],
            norm_num_groups=s["groups"],
            attn_norm_num_groups=s["groups"],
            resnet_time_scale_shift="default" if s.get("condition") == "add" else "scale_shift",
        )
    )


MAKERS = {"ours": ours, "theirs": theirs}


def measure(case: Case, make: Any, device: str, rounds: int = 1) -> list[dict[str, float]]:
    """Images a second and peak memory of training, in this process, once for each round."""
    torch.manual_seed(0)
    hardware = Hardware(**dict(case.flags))
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = memory(device)
    net = make(case).to(device).train()
    if hardware.channels_last:
        net.to(memory_format=torch.channels_last)
    run = torch.compile(net) if hardware.compile else net
    opt = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    b = case.shape[0]
    x, t = torch.randn(case.shape, device=device), 1000 * torch.rand(b, device=device)
    y = (torch.arange(b, device=device) % 10,) if case.network == "dit" else ()
    if hardware.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    noise = torch.randn_like(x)

    def step() -> None:
        opt.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=hardware.precision == "bf16"):
            out = run(x, t, *y)
        (out.float() - noise).square().mean().backward()
        opt.step()

    for _ in range(3):
        step()
    found = []
    for _ in range(rounds):
        wait(device)
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(case.steps):
            step()
        wait(device)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        n = b * case.steps
        found += [{"images_per_second": n / seconds, "images_per_cpu_second": n / cpu}]
    memory_and_size = {"megabytes": (memory(device) - before) / 1e6, "parameters": cost.parameters(net)}
    return [f | memory_and_size for f in found]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def memory(device: str) -> float:
    """Bytes, the most so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of Linux, in KiB


def cases(device: str) -> dict[str, Case]:
    return GPU if device == "cuda" else CPU


def child(name: str, library: str, device: str, threads: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    argv = [sys.executable, __file__, "--case", name, "--library", library, "--device", device]
    done = subprocess.run([*argv, "--threads", str(threads)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} of {library} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted({*CPU, *GPU}), help="only this one; the others stay as they are")
    parser.add_argument("--library", choices=("ours", "theirs"), help="measure in this process, and print")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.library:
        print(json.dumps(measure(cases(a.device)[a.case], MAKERS[a.library], a.device)[0]))
        return
    results: dict[str, Any] = {"made": provenance("python tools/bench_images.py"), "device": device_name(a.device)}
    results |= {"threads": a.threads, "cases": {}}
    path = FOLDER / f"{RESULTS[a.device]}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if a.case and all(before.get(k) == results[k] for k in ("made", "device", "threads")):  # measured alike
        results["cases"] = before["cases"]
    for name in [a.case] if a.case else cases(a.device):
        case = cases(a.device)[name]
        found: dict[str, list[dict[str, float]]] = {library: [] for library in MAKERS}
        if a.device == "cuda":
            found = {library: measure(case, make, a.device, a.rounds) for library, make in MAKERS.items()}
        for _ in progress(range(a.rounds if a.device == "cpu" else 0), desc=name):
            for library in found:
                found[library].append(child(name, library, a.device, a.threads))
        row: dict[str, Any] = {"flags": dict(case.flags), "batch": list(case.shape), "rounds": a.rounds}
        for library, values in found.items():
            row[library] = {k: statistics.median(v[k] for v in values) for k in values[0]}
            row[library]["range"] = [f(v["images_per_second"] for v in values) for f in (min, max)]
        row["ratio"] = row["ours"]["images_per_second"] / row["theirs"]["images_per_second"]
        row["cpu_ratio"] = row["ours"]["images_per_cpu_second"] / row["theirs"]["images_per_cpu_second"]
        if a.device == "cuda":
            row["utilisation"] = utilisation(case, row["ours"]["images_per_second"])
        results["cases"][name] = row
        print(name, json.dumps(row))
        save_results(RESULTS[a.device], results)
        README.write_text(renew(README.read_text(encoding="utf-8")), encoding="utf-8")


def table() -> str:
    """The README's table, from the files' numbers alone."""
    lines = ["| training, images/s | ours | diffusers | ratio | memory, ours and theirs | of the card's peak |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for name in RESULTS.values():
        path = FOLDER / f"{name}.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cases": {}}
        place = "one thread" if results.get("device") == "cpu" else results.get("device")
        for case, row in results["cases"].items():
            rates = [f"{row[library]['images_per_second']:.0f}" for library in MAKERS]
            sizes = ", ".join(f"{row[library]['megabytes'] / 1e3:.1f} GB" for library in MAKERS)
            used = f"{row['utilisation']:.0%}" if row.get("utilisation") else ""
            lines += [f"| {case}; {place} | {rates[0]} | {rates[1]} | {row['ratio']:.2f} | {sizes} | {used} |"]
    return "\n".join(lines)


def renew(readme: str) -> str:
    """The README with its table."""
    start, end = "<!-- images -->\n", "<!-- /images -->"
    before, rest = readme.split(start)
    return before + start + table() + "\n" + end + rest.split(end)[1]


def utilisation(case: Case, images_per_second: float) -> float | None:
    """Share of the card's peak in bf16 that the network's own products use; None for a card that is not listed."""
    peak = next((p for name, p in PEAK_BF16.items() if name in torch.cuda.get_device_name()), None)
    with torch.device("meta"):
        one = cost.macs(ours(case), torch.zeros(1, *case.shape[1:]), torch.zeros(1))
    return None if peak is None else 6 * one * images_per_second / peak


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    main()
