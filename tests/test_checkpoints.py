"""Checkpoints: what comes back is what went in, nothing else is accepted, and no kill leaves half a file.

Run as a script, this file is the process that the kills are tried on: it imports torch once and forks.
"""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tinydiff as td
from tinydiff import checkpoints, denoisers, targets
from tinydiff.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from tinydiff.training import fit

ROOT = Path(__file__).parent.parent

SCHEDULES = {
    "DiscreteVP": td.DiscreteVP(td.linear_betas(1000)),
    "DiscreteVP, cosine": td.DiscreteVP(td.cosine_betas(50)),
    "VP": td.VP(0.2, 15.0),
    "SubVP": td.SubVP(0.3, 12.0),
    "VE": td.VE(0.02, 30.0),
    "EDM": td.EDM(0.01, 40.0, 5.0),
    "Cosine": td.Cosine(),
    "Cosine without end": td.Cosine(float("inf")),
    "Flow": td.Flow(15.0),
    "Shifted": td.Shifted(td.Flow(), 3.0),
}
TARGETS = [targets.x0, targets.eps, targets.v, targets.score, targets.velocity, targets.edm(), targets.edm(1.3)]
NETS = {
    "MLP": lambda: td.models.MLP(width=8, depth=2, fourier=4),
    "MLP with classes": lambda: td.models.MLP(width=8, depth=1, fourier=0, classes=3),
    "UNet": lambda: td.models.UNet(width=8, attention=(False, False)),
    "UNet with classes": lambda: td.models.UNet(width=8, classes=3, dropout=0.1),
    "DiT": lambda: td.models.DiT(width=8, depth=1, heads=2),
    "DiT with classes": lambda: td.models.DiT(width=8, depth=1, classes=3, conditioning="cross-attention"),
}


def network(name: str = "MLP", seed: int = 0) -> nn.Module:
    """With random weights throughout, also where training starts from zero."""
    torch.manual_seed(seed)
    net = NETS[name]()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
    return net.eval()


def small(**parts) -> td.NetDenoiser:
    return td.NetDenoiser(**dict(net=network(), schedule=td.Cosine(), target=targets.v) | parts)


def beliefs(d, x: torch.Tensor, **cond) -> list[torch.Tensor]:
    out = []
    with torch.no_grad():
        for t in (0.03, 0.5, 0.97):
            p = d(x, t, **cond)
            out += [p.x0, p.eps]
            if p.var is not None:
                c, s = d.schedule(t, like=x), d.schedule(t / 2, like=x)
                out.append(p.var(c, s))
    return out


def assert_same(d, again, x=None, **cond):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1)) if x is None else x
    for a, b in zip(beliefs(d, x, **cond), beliefs(again, x, **cond), strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_with_every_target_comes_back(name, tmp_path):
    path = tmp_path / "d.safetensors"
    for target in TARGETS:
        d = small(schedule=SCHEDULES[name], target=target)
        save_checkpoint(path, d)
        again = load_checkpoint(path)
        assert_same(d, again)
        assert type(again.schedule) is type(d.schedule) and again.target == d.target
        assert again.schedule.t_min == d.schedule.t_min and again.schedule.prior_std == d.schedule.prior_std
        if name != "DiscreteVP":  # whose betas compare one by one
            continue
        assert torch.equal(again.schedule.betas, d.schedule.betas)


def test_a_schedule_in_a_schedule_in_a_schedule_comes_back(tmp_path):
    schedule = td.Shifted(td.Shifted(td.Cosine(12.0), 2.0), 0.7)
    save_checkpoint(tmp_path / "d.safetensors", small(schedule=schedule))
    assert load_checkpoint(tmp_path / "d.safetensors").schedule == schedule


@pytest.mark.parametrize("name", NETS)
def test_every_network_comes_back(name, tmp_path):
    d = small(net=network(name))
    save_checkpoint(tmp_path / "d.safetensors", d)
    again = load_checkpoint(tmp_path / "d.safetensors")
    assert type(again.net) is type(d.net) and again.net.config == d.net.config and not again.net.training
    x = None if "MLP" in name else torch.randn(3, 1, 8, 8)
    assert_same(d, again, x)
    if "classes" in name:
        assert_same(d, again, x, y=torch.tensor([0, 2, 3]))


@pytest.mark.parametrize("c_in", [denoisers.c_in_one, denoisers.c_in_edm(), denoisers.c_in_edm(2.0)])
@pytest.mark.parametrize("c_noise", [denoisers.c_noise_ddpm, denoisers.c_noise_edm])
def test_every_setting_comes_back(c_in, c_noise, tmp_path):
    d = small(c_in=c_in, c_noise=c_noise)
    save_checkpoint(tmp_path / "d.safetensors", d)
    again = load_checkpoint(tmp_path / "d.safetensors")
    assert_same(d, again)
    assert (again.c_in, again.c_noise, again.var) == (c_in, c_noise, None)


def test_a_learned_variance_comes_back(tmp_path):
    torch.manual_seed(0)
    net = td.models.UNet(out_channels=2, width=8)
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    d = small(net=net.eval(), target=targets.eps, var=denoisers.interpolated_variance)
    save_checkpoint(tmp_path / "d.safetensors", d)
    again = load_checkpoint(tmp_path / "d.safetensors")
    assert again.var is denoisers.interpolated_variance
    assert_same(d, again, torch.randn(2, 1, 8, 8))


def test_every_part_of_the_library_is_known():
    """A schedule, target or network that is added must be added to KNOWN as well."""
    of_schedules = {s for s in vars(td.schedules).values() if isinstance(s, type) and issubclass(s, td.Schedule)}
    of_models = {m for m in vars(td.models).values() if isinstance(m, type) and issubclass(m, nn.Module)}
    missing = (of_schedules - {td.Schedule} | of_models) - set(checkpoints.KNOWN.values())
    assert missing == set()
    assert {type(s) for s in SCHEDULES.values()} == of_schedules - {td.Schedule}  # and to the list above


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_weights_comes_back(dtype, tmp_path):
    d = small(net=network().to(dtype))
    save_checkpoint(tmp_path / "d.safetensors", d)
    again = load_checkpoint(tmp_path / "d.safetensors")
    assert all(p.dtype == dtype for p in again.net.parameters())
    assert_same(d, again, torch.randn(3, 2, dtype=dtype))


def test_metadata_and_recipe_can_be_read(tmp_path):
    path = tmp_path / "new" / "folder" / "d.safetensors"
    recipe = {"command": "python -m tinydiff train x", "seed": 3, "metrics": {"a": 0.125, "b": None}, "grün": "ä"}
    d = small(schedule=td.Shifted(td.Flow(), 3.0), target=targets.edm(0.5))
    save_checkpoint(path, d, recipe, {"train.step": torch.tensor(7)})
    tensors, description, got = read_checkpoint(str(path))
    assert got == recipe
    assert description["schedule"] == {
        "class": "Shifted",
        "config": {"base": {"class": "Flow", "config": {"max_logsnr": 20.0}}, "shift": 3.0},
    }
    assert description["target"] == {"class": "edm", "config": {"sigma_data": 0.5}}
    assert description["net"]["config"]["width"] == 8
    assert tensors["train.step"] == 7 and set(tensors) - {"train.step"} == {f"net.{k}" for k in d.net.state_dict()}
    assert_same(d, load_checkpoint(path))  # what is extra is in nobody's way
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    assert header["__metadata__"]["format"] == "tinydiff checkpoint 1"  # readable without tinydiff
    assert [p.name for p in path.parent.iterdir()] == ["d.safetensors"]


class Mine(nn.Module):
    """A network that tinydiff does not know, with two names for one weight."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x, noise_level):
        return self.b(self.a(x)) + noise_level[:, None]


class Halfway(td.Schedule):
    def path(self, t):
        return 1 - t**2, t


def test_parts_of_your_own_are_passed_in(tmp_path):
    path = tmp_path / "d.safetensors"
    mine = lambda c: (0.0, 2.0)  # noqa: E731
    slow = lambda c: 10 * c.t  # noqa: E731
    d = small(net=Mine().eval(), schedule=Halfway(), target=mine, c_noise=slow)
    save_checkpoint(path, d)
    given = dict(net=Mine(), schedule=Halfway(), target=mine, c_noise=slow)
    again = load_checkpoint(path, **given)
    assert_same(d, again)
    assert again.net is given["net"] and not again.net.training
    for role, name in [("net", "Mine"), ("schedule", "Halfway"), ("target", "<lambda>"), ("c_noise", "<lambda>")]:
        fewer = {k: v for k, v in given.items() if k != role}
        message = (
            rf"the checkpoint's {role} is '{name}', which is not one of tinydiff's own: pass it as load_checkpoint"
        )
        with pytest.raises(ValueError, match=rf"{message}\(path, {role}=\.\.\.\)"):
            load_checkpoint(path, **fewer)
    with pytest.raises(TypeError):
        load_checkpoint(path, **given, c_nois=slow)


def test_a_part_with_a_known_name_is_not_taken_for_ours(tmp_path):
    UNet = type("UNet", (Mine,), {})

    def v(c):
        return 1.0, 1.0

    for part in (dict(net=UNet()), dict(target=v), dict(schedule=td.Shifted(Halfway(), 2.0))):
        save_checkpoint(tmp_path / "d.safetensors", small(**part))
        with pytest.raises(ValueError, match="not one of tinydiff's own"):
            load_checkpoint(tmp_path / "d.safetensors")


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_checkpoint(tmp_path / "d.safetensors", small())
    with pytest.raises(ValueError, match=r"the weights in .*d\.safetensors do not fit the network UNet"):
        load_checkpoint(tmp_path / "d.safetensors", net=td.models.UNet(width=8))


# ---- files that are no checkpoints ---------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"there is no checkpoint at {path}"):
            load_checkpoint(path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    whole, cut = tmp_path / "d.safetensors", tmp_path / "cut.safetensors"
    save_checkpoint(whole, small())
    data = whole.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    lengths = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 1}
    lengths |= set(random.Random(0).sample(range(len(data)), 60))
    for length in sorted(lengths):
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors is not a whole safetensors file \(cut short"):
            load_checkpoint(cut)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused(seed, tmp_path):
    path = tmp_path / "noise.safetensors"
    path.write_bytes(random.Random(seed).randbytes(10 ** random.Random(seed).randrange(5)))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_checkpoint(path)


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "tinydiff checkpoint 999"}):
        save_file({"net.weight": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"was not written by tinydiff: its metadata lack format = 'tinydiff ch"):
            load_checkpoint(path)


def test_our_format_with_parts_missing_or_of_another_version_is_refused(tmp_path):
    path = tmp_path / "odd.safetensors"
    ours = {"format": checkpoints.FORMAT}
    for metadata in (ours, ours | {"denoiser": "{", "recipe": "{}"}, ours | {"denoiser": "{}"}):
        save_file({"net.weight": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"odd\.safetensors .*cannot be read"):
            load_checkpoint(path)
    parts = checkpoints.describe_denoiser(small())
    parts["schedule"]["config"]["colour"] = "blue"
    save_file({"net.weight": torch.zeros(2)}, path, metadata=ours | {"denoiser": json.dumps(parts), "recipe": "{}"})
    with pytest.raises(ValueError, match="the checkpoint's schedule is of another version of tinydiff.*colour"):
        load_checkpoint(path)


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_no_pickle_is_ever_loaded(tmp_path):
    path, crater = tmp_path / "d.safetensors", tmp_path / "crater"
    for write in (lambda: path.write_bytes(pickle.dumps(Bomb(crater))), lambda: torch.save(Bomb(crater), path)):
        write()
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            load_checkpoint(path)
    assert not crater.exists()
    pickle.loads(pickle.dumps(Bomb(crater)))  # the bomb is a live one
    assert crater.exists()


def test_code_named_in_the_description_is_not_run(tmp_path):
    path = tmp_path / "d.safetensors"
    for name in ("os.system", "system", "eval", "NetDenoiser", "__import__"):
        parts = checkpoints.describe_denoiser(small()) | {"net": {"class": name, "config": {"command": "true"}}}
        save_file({}, path, metadata={"format": checkpoints.FORMAT, "denoiser": json.dumps(parts), "recipe": "{}"})
        with pytest.raises(ValueError, match="not one of tinydiff's own"):
            load_checkpoint(path)


def test_the_names_of_shipped_checkpoints_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match="no shipped checkpoint 'a'; there are: none yet"):
        td.load_pretrained("a")
    for name in ("b", "c"):
        save_checkpoint(tmp_path / f"{name}.safetensors", small())
    with pytest.raises(FileNotFoundError, match="there are: b, c"):
        td.load_pretrained("a")
    assert_same(td.load_pretrained("b"), small())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path, d = tmp_path / "d.safetensors", small()
    save_checkpoint(path, d)

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, small(net=network(seed=5)))
    monkeypatch.undo()
    assert_same(d, load_checkpoint(path))
    save_checkpoint(path, small(net=network(seed=5)))  # what was left behind is in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


# ---- kills ---------------------------------------------------------------------------------------

KILLS = 40
RUN_STEPS = 40


def versions(path: Path, first: int, pipe: int) -> None:
    """Saves version after version, each with all weights equal to its number, and announces what is saved."""
    d = small(net=td.models.MLP(width=256, depth=3))
    for number in range(first, first + 100_000):
        with torch.no_grad():
            for value in d.net.state_dict().values():
                value.fill_(number)
        save_checkpoint(path, d, {"number": number})
        os.write(pipe, number.to_bytes(8, "little"))


def training(path: Path, pipe: int) -> None:
    """A run with dropout, a checkpoint every third step, that resumes where it was; announces each loss."""
    torch.manual_seed(random.randrange(10**9))  # the weights at the start must not matter when there is a checkpoint
    if not path.exists():
        torch.manual_seed(0)
    net = td.models.UNet(width=4, mults=(1,), attention=(False,), classes=3, dropout=0.3)
    d = td.NetDenoiser(net, td.Cosine(), targets.v)
    x0 = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    data = dict(x0=x0, y=torch.arange(50) % 3)
    options = dict(steps=RUN_STEPS, batch_size=4, checkpoint=path, every=3, resume=True)
    for step in fit(d, data, **options):
        os.write(pipe, step.number.to_bytes(8, "little") + torch.tensor(step.loss).double().numpy().tobytes())


def forked(work, *args) -> tuple[int, int]:
    """(pid, what to read from) of a child that does the work and ends."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        try:
            work(*args, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    return pid, ours


def drained(pipe: int, size: int) -> list[bytes]:
    """All whole records of a pipe whose writer is dead."""
    data = b""
    while chunk := os.read(pipe, 1 << 16):
        data += chunk
    os.close(pipe)
    return [data[i : i + size] for i in range(0, len(data) - len(data) % size, size)]


def kill_savers(folder: Path, seed: int) -> dict:
    path, rng, last, halfway = folder / "d.safetensors", random.Random(seed), 0, 0
    for _ in range(KILLS):
        pid, pipe = forked(versions, path, last + 1)
        os.read(pipe, 8)  # it has begun
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        announced = [int.from_bytes(record, "little") for record in drained(pipe, 8)]
        halfway += (folder / ".d.safetensors.partial").exists()
        tensors, _, recipe = read_checkpoint(path)
        number = recipe["number"]
        assert number - max(announced, default=last + 1) in (0, 1), (number, announced)
        assert all((value == number).all() for value in tensors.values()), "a mixture of two versions"
        assert (load_checkpoint(path).net.last.bias == number).all()
        last = number
    return {"halfway": halfway, "saved": last}


def kill_runs(folder: Path, seed: int) -> dict:
    whole, path, rng, losses, kills = (
        folder / "whole.safetensors",
        folder / "run.safetensors",
        random.Random(seed),
        {},
        0,
    )
    pid, pipe = forked(training, whole)
    expected = {r[:8]: r[8:] for r in drained(pipe, 16)}
    os.waitpid(pid, 0)
    assert len(expected) == RUN_STEPS
    while len(losses) < RUN_STEPS or read_checkpoint(path)[2]["step"] < RUN_STEPS:
        pid, pipe = forked(training, path)
        for _ in range(rng.randrange(1, 16)):  # so many steps, and then at any moment of the next
            if not (record := os.read(pipe, 16)):
                break
            losses[record[:8]] = record[8:]
        time.sleep(rng.uniform(0, 0.01))
        try:
            os.kill(pid, signal.SIGKILL)
        finally:
            _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        losses |= {r[:8]: r[8:] for r in drained(pipe, 16)}
    assert losses == expected
    (a, _, saved_a), (b, _, saved_b) = read_checkpoint(whole), read_checkpoint(path)
    assert saved_a == saved_b and a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    return {"kills": kills}


def tried(what: str, folder: Path) -> dict:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, what, str(folder), "0"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@posix
def test_a_kill_at_any_moment_leaves_the_last_whole_file(tmp_path):
    got = tried("kill_savers", tmp_path)
    assert got["saved"] >= KILLS
    assert got["halfway"] >= KILLS // 4  # most kills fall inside a write: MOST


@posix
def test_a_killed_and_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    assert tried("kill_runs", tmp_path)["kills"] >= 3


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        json.dumps(
            {"kill_savers": kill_savers, "kill_runs": kill_runs}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
        )
    )


# ---- networks alone, and weights that travel in half ---------------------------------------------


def test_a_network_alone_comes_back(tmp_path):
    torch.manual_seed(0)
    net, path = td.models.ConvClassifier(width=8), tmp_path / "net.safetensors"
    net(torch.randn(4, 1, 16, 16))  # moves the running statistics of its norms
    checkpoints.save_network(path, net.eval(), {"seed": 3}, {"reference.mean": torch.ones(2)})
    again, x = checkpoints.load_network(path), torch.randn(2, 1, 16, 16)
    assert torch.equal(again(x), net(x)) and not again.training
    tensors, _, recipe = read_checkpoint(path)
    assert recipe == {"seed": 3} and torch.equal(tensors["reference.mean"], torch.ones(2))
    with pytest.raises(ValueError, match="holds a network alone, not a denoiser: load_network reads it"):
        load_checkpoint(path)


def test_the_network_of_a_denoiser(tmp_path):
    d = small()
    save_checkpoint(tmp_path / "d.safetensors", d)
    again = checkpoints.load_network(tmp_path / "d.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), d.net.parameters(), strict=True))


def test_float16_weights_work_in_float32(tmp_path):
    d = small()
    d.net.half()
    save_checkpoint(tmp_path / "d.safetensors", d)
    again = load_checkpoint(tmp_path / "d.safetensors")
    for a, b in zip(again.net.parameters(), d.net.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.float())
