"""`fit` against exact answers: the floor of the loss, averages by hand, and runs that continue bit for bit."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tinydiff as td
from tinydiff.checkpoints import read_checkpoint
from tinydiff.training import EMA, constant, fit, warmup_cosine

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
PLAIN = torch.optim.SGD


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, generator=gen(seed))


def small(seed: int = 0, **options) -> td.NetDenoiser:
    torch.manual_seed(seed)
    return td.NetDenoiser(td.models.MLP(width=16, depth=2, fourier=4, **options), td.Cosine(), td.targets.v)


class Dropping(nn.Module):
    """A network with dropout, a buffer that training changes, and a parameter that nothing uses."""

    def __init__(self):
        super().__init__()
        self.mlp, self.out = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Dropout(0.5)), nn.Linear(32, 2)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, noise_level):
        self.calls += 1
        return self.out(self.mlp(torch.cat([x, noise_level[:, None] / 1000], dim=1)))


def dropping(seed: int = 0) -> td.NetDenoiser:
    torch.manual_seed(seed)
    return td.NetDenoiser(Dropping(), td.Cosine(), td.targets.v)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- does it learn? ------------------------------------------------------------------------------


@SEEDS
def test_loss_comes_down_to_the_exact_floor(seed):
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]])
    truth = td.GaussianMixture(means, 0.1, [0.5, 0.3, 0.2], td.Cosine())
    torch.manual_seed(seed)
    d = td.NetDenoiser(td.models.MLP(width=64, depth=2, fourier=16), truth.schedule, td.targets.v)
    data, fresh = truth.sample(20_000, gen(seed)), truth.sample(20_000, gen(100 + seed))

    def measured(denoiser):
        with torch.no_grad():
            t = td.losses.stratified_times(len(fresh), gen(7))
            return td.denoising_loss(denoiser, fresh, t, target=td.targets.v, generator=gen(8)).mean().item()

    floor, untrained = measured(truth), measured(d)
    for step in fit(d, data, steps=400, lr=5e-3, batch_size=256, seed=seed, ema=0.98, lr_schedule=warmup_cosine(20)):
        pass
    # over six seeds: untrained 1.54 to 1.58 times the floor, trained 1.018 to 1.025
    assert untrained > 1.5 * floor
    assert 1.0 < measured(step.denoiser) / floor < 1.04


def test_one_batch_is_learnt_by_heart():
    """With the noise and the times fixed, the loss goes to 0: no floor, so any gradient that is lost would show."""
    d, x0 = small(), points(8)
    eps, t = points(8, seed=1), torch.linspace(0.1, 0.9, 8)

    def loss(d, x0, t, **cond):
        c = d.schedule(t, like=x0)
        out, _ = d.output(c.alpha * x0 + c.sigma * eps, c)
        return ((out - td.targets.encode(d.target, c, x0, eps)) ** 2).mean(1)

    whole = DataLoader([x for x in x0], batch_size=8)
    losses = [s.loss for s in fit(d, whole, steps=400, lr=1e-2, loss=loss, times=lambda n, device: t, ema=0.0)]
    assert losses[0] > 0.3 and losses[-1] < 1e-3  # 2e-5 to 2e-4 over five seeds of the network


# ---- averages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.999])
def test_ema_is_its_recursion(decay):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = EMA(net, decay)
    mine = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    for k in range(1, 30):
        with torch.no_grad():
            for p in net.parameters():
                p += torch.randn(p.shape, generator=gen(k))
            net[1].running_mean += k
            net[1].num_batches_tracked += 1
        average.update(net)
        beta = min(decay, (1 + k) / (10 + k))
        for name, p in net.named_parameters():
            mine[name] = beta * mine[name] + (1 - beta) * p.detach().double()
        for name, p in average.net.named_parameters():
            torch.testing.assert_close(p.double(), mine[name], rtol=1e-5, atol=1e-5)
        assert torch.equal(average.net[1].running_mean, net[1].running_mean)
        assert average.net[1].num_batches_tracked == k
    assert not any(p.requires_grad for p in average.net.parameters()) and not average.net.training


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_ema_refuses_a_decay_that_is_none(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
        EMA(nn.Linear(1, 1), decay)


def test_step_carries_the_average_of_the_weights_after_the_step():
    d, mine = dropping(), None
    before = weights(d.net)
    for step in fit(d, points(), steps=12, ema=0.6, batch_size=4, seed=3):
        now = weights(d.net)
        assert not torch.equal(now["out.weight"], before["out.weight"])  # yielded after the optimiser's step
        k, before = step.number, now
        beta = min(0.6, (1 + k) / (10 + k))
        if mine is None:
            mine = weights(dropping().net)
        for name in ("out.weight", "mlp.0.bias"):
            mine[name] = beta * mine[name] + (1 - beta) * now[name]
            torch.testing.assert_close(step.denoiser.net.state_dict()[name], mine[name], rtol=1e-5, atol=1e-6)
        assert step.denoiser.net.calls == d.net.calls == k
        assert not step.denoiser.net.training and d.net.training
        assert step.denoiser.schedule is d.schedule and step.denoiser.target is d.target
    assert step.number == 12


# ---- learning rates and clipping -----------------------------------------------------------------


def test_learning_rate_schedules():
    assert constant(0, 10) == constant(9, 10) == 1.0
    rate = warmup_cosine(warmup=4, end=0.1)
    assert [rate(k, 14) for k in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(4, 14) == 1.0 and math.isclose(rate(9, 14), 0.55)  # half way down the cosine
    assert math.isclose(rate(14, 14), 0.1)
    assert all(rate(k, 14) > rate(k + 1, 14) for k in range(4, 14))
    assert warmup_cosine()(0, 5) == 1.0
    assert warmup_cosine(warmup=5)(4, 5) == 1.0 and math.isfinite(warmup_cosine(warmup=5)(5, 5))


def test_fit_uses_the_schedule_and_clips_the_gradient():
    """With SGD an update is lr times the gradient, so its norm is at most lr x factor x clip."""
    rate, clip = warmup_cosine(warmup=3), 0.01
    d = small()
    before = weights(d.net)
    steep = lambda d, x0, t, **cond: 1000 * td.denoising_loss(d, x0, t)  # noqa: E731
    for step in fit(d, points(), steps=8, lr=0.5, loss=steep, clip=clip, lr_schedule=rate, optimizer=PLAIN):
        now = weights(d.net)
        norm = math.sqrt(sum(((now[k] - before[k]).double() ** 2).sum().item() for k in now))
        assert math.isclose(norm, 0.5 * rate(step.number - 1, 8) * clip, rel_tol=1e-3)
        before = now


def test_a_small_gradient_is_left_alone():
    runs = []
    for clip in (1e3, math.inf):
        d = small()
        list(fit(d, points(), steps=3, lr=0.1, clip=clip, optimizer=PLAIN))
        runs.append(weights(d.net))
    assert same(*runs)


# ---- random numbers ------------------------------------------------------------------------------


def recorded(d, data, **options) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What each step saw: x0, t, and one more random number."""
    seen = []

    def loss(d, x0, t, **cond):
        seen.append((x0, t, torch.rand(3)))
        return td.denoising_loss(d, x0, t)

    list(fit(d, data, loss=loss, **options))
    return seen


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone():
    options = dict(steps=5, batch_size=4)
    torch.manual_seed(11)
    first = recorded(small(), points(), seed=1, **options)
    torch.manual_seed(22)
    torch.rand(5)
    # another network, another optimiser, more steps: the same draws
    again = recorded(dropping(), points(), seed=1, optimizer=PLAIN, **options | dict(steps=7))
    other = recorded(small(), points(), seed=2, **options)
    for a, b, c in zip(first, again, other, strict=False):
        assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
        assert not any(torch.equal(u, v) for u, v in zip(a, c, strict=True))
    assert len({tuple(t.tolist()) for _, t, _ in again}) == 7


def test_the_random_state_outside_is_as_if_nothing_had_been_drawn():
    torch.manual_seed(5)
    untouched = torch.rand(8)
    torch.manual_seed(5)
    drawn = [torch.rand(1) for _ in fit(dropping_at(5), points(), steps=8, batch_size=4)]
    assert torch.equal(torch.cat(drawn), untouched)


def dropping_at(seed: int) -> td.NetDenoiser:
    d = dropping()
    torch.manual_seed(seed)
    return d


def test_dropout_is_reproducible_and_on():
    losses = [[s.loss for s in fit(dropping_at(k), points(), steps=6, batch_size=8)] for k in (1, 2)]
    assert losses[0] == losses[1]
    still = dropping()
    still.net.mlp[2].p = 0.0
    assert losses[0] != [s.loss for s in fit(still, points(), steps=6, batch_size=8)]


# ---- data ----------------------------------------------------------------------------------------


class Pairs(Dataset):
    def __init__(self, n: int):
        self.x0, self.y = points(n), torch.arange(n) % 3

    def __len__(self):
        return len(self.x0)

    def __getitem__(self, i):
        return self.x0[i], self.y[i]


def test_tensors_dicts_and_datasets_draw_the_same_batches():
    pairs, options = Pairs(30), dict(steps=4, batch_size=8, seed=1)

    def run(data):
        seen = []

        def loss(d, x0, t, y):
            seen.append((x0, y))
            return td.denoising_loss(d, x0, t, y=y)

        return [s.loss for s in fit(small(classes=3), data, loss=loss, **options)], seen

    as_dict = run(dict(x0=pairs.x0, y=pairs.y))
    as_items = run(pairs)
    as_tensors = run(TensorDataset(pairs.x0, pairs.y))
    assert as_dict[0] == as_items[0] == as_tensors[0]
    for (x0, y), (x0_, y_) in zip(as_dict[1], as_items[1], strict=True):
        assert torch.equal(x0, x0_) and torch.equal(y, y_)
        rows = [(pairs.x0 == row).all(1).nonzero().item() for row in x0]
        assert y.tolist() == [row % 3 for row in rows]  # a label stays with its point


def test_a_tensor_is_x0_and_is_drawn_with_replacement():
    seen = recorded(small(), points(3), steps=2, batch_size=50)
    assert seen[0][0].shape == (50, 2) and len(seen[0][0].unique(dim=0)) == 3


def test_a_loader_is_read_in_its_order_again_and_again():
    seen = recorded(small(), DataLoader(list(points(10)), batch_size=4), steps=7)
    x0 = [x for x, _, _ in seen]
    assert [len(x) for x in x0] == [4, 4, 2, 4, 4, 2, 4]
    assert torch.equal(torch.cat(x0[:3]), points(10)) and torch.equal(torch.cat(x0[3:6]), points(10))


def test_a_loader_of_pairs_gives_labels():
    labels = []

    def loss(d, x0, t, y):
        labels.append(y)
        return td.denoising_loss(d, x0, t, y=y)

    list(fit(small(classes=3), DataLoader(Pairs(6), batch_size=6), steps=1, loss=loss))
    assert labels[0].tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_are_dropped_in_the_batch():
    labels = []

    def drop(batch):
        null = torch.rand(len(batch["y"])) < 0.5
        return batch | dict(y=torch.where(null, 3, batch["y"]))

    def loss(d, x0, t, y):
        labels.append(y)
        return td.denoising_loss(d, x0, t, y=y)

    data = dict(x0=points(60), y=torch.arange(60) % 3)
    options = dict(steps=20, batch_size=50, loss=loss)
    list(fit(small(classes=3), data, drop=drop, **options))
    dropped = torch.stack(labels)
    share = (dropped == 3).double().mean().item()
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 1000)  # 1,000 draws: four standard errors
    labels.clear()
    list(fit(small(classes=3), data, **options))
    kept = torch.stack(labels)
    assert torch.equal(dropped[dropped != 3], kept[dropped != 3])  # the others are as they were
    labels.clear()
    list(fit(small(classes=3), data, drop=drop, **options))
    assert torch.equal(torch.stack(labels), dropped)  # and what is dropped depends on the seed


@pytest.mark.parametrize(
    "data, message",
    [
        (torch.zeros(0, 2), "data is empty"),
        (dict(x0=torch.zeros(0, 2), y=torch.zeros(0, dtype=torch.long)), "data is empty"),
        (TensorDataset(torch.zeros(0, 2)), "data is empty"),
        (DataLoader(TensorDataset(torch.zeros(0, 2))), "data is empty: a loader"),
        (torch.tensor([[1.0, math.nan], [math.inf, 0.0]]), r"data\['x0'\] holds NaN or infinity in 2 places"),
        (dict(x0=points(4), text=torch.full((4, 3), math.nan)), r"data\['text'\] holds NaN or infinity in 12 places"),
        (dict(x0=points(4), y=torch.zeros(3)), r"data\['y'\] must have 4 rows, like x0; got 3"),
        (dict(x=points(4)), "a batch must be x0"),
        (TensorDataset(points(4), points(4), points(4)), "a batch must be x0"),
    ],
)
def test_bad_data_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        next(fit(small(), data, steps=1))


# ---- losses that are not finite ------------------------------------------------------------------


def test_nan_in_a_batch_is_named_with_its_step():
    x0 = points(12)
    x0[9] = math.nan
    steps = fit(small(), DataLoader(list(x0), batch_size=4), steps=9)
    assert next(steps).number == 1 and next(steps).number == 2
    with pytest.raises(FloatingPointError, match=r"nan at step 3 of 9: the batch itself holds NaN"):
        next(steps)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_its_step(value):
    d, calls = small(), []

    def loss(d, x0, t):
        calls.append(1)
        return td.denoising_loss(d, x0, t) * (value if len(calls) == 4 else 1.0)

    last = None
    with pytest.raises(FloatingPointError, match=rf"the loss is {value} at step 4 of 9: try a smaller lr"):
        for step in fit(d, points(), steps=9, loss=loss):
            last = step.number
    assert last == 3 and all(p.isfinite().all() for p in d.net.parameters())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost():
    """sqrt at 0: the loss is 0, its gradient infinite."""
    d = small()
    flat = lambda d, x0, t: (0 * d.output(x0, d.schedule(t, like=x0))[0]).pow(2).sum(1).sqrt()  # noqa: E731
    with pytest.raises(FloatingPointError, match=r"its gradient nan at step 1 of 3"):
        next(fit(d, points(), steps=3, loss=flat))
    assert all(p.isfinite().all() for p in d.net.parameters())


def test_too_large_a_learning_rate_is_named():
    with pytest.raises(FloatingPointError, match="at step"):
        list(fit(small(), 100 * points(), steps=200, lr=1e6, optimizer=PLAIN, clip=math.inf))


# ---- resume --------------------------------------------------------------------------------------

STEPS = 23


def through(data, path, make=dropping, **options) -> tuple[list, dict, dict]:
    """Losses, raw weights and averaged weights of a run that is stopped where `stops` says and resumed."""
    losses, stops = [], options.pop("stops", [])
    for stop in [*stops, None]:
        d = make(seed=99 if path.exists() else 0)  # all that counts comes from the checkpoint
        for step in fit(d, data, steps=STEPS, checkpoint=path, every=5, resume=True, batch_size=6, seed=4, **options):
            del losses[step.number - 1 :]
            losses.append(step.loss)
            if step.number == stop:
                break
    return losses, weights(d.net), weights(step.denoiser.net)


def shuffled(n: int = 40) -> DataLoader:
    return DataLoader(list(points(n)), batch_size=6, shuffle=True)  # 7 batches: 23 steps are 3 rounds and 2 batches


@pytest.mark.parametrize("stops", [[5], [7], [10, 12, 22], [1, 6]])
@pytest.mark.parametrize("data", [points(), shuffled()], ids=["tensor", "shuffled loader"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(data, stops, tmp_path):
    options = dict(lr_schedule=warmup_cosine(4), lr=3e-3)
    whole = through(data, tmp_path / "whole.safetensors", **options)
    parts = through(data, tmp_path / "parts.safetensors", stops=stops, **options)
    assert parts[0] == whole[0] and len(whole[0]) == STEPS
    assert same(parts[1], whole[1]) and same(parts[2], whole[2])
    files = [read_checkpoint(tmp_path / f"{name}.safetensors") for name in ("whole", "parts")]
    assert same(files[0][0], files[1][0]) and files[0][1:] == files[1][1:]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, lambda p, lr: PLAIN(p, lr=lr, momentum=0.9)])
def test_other_optimisers_resume_too(optimizer, tmp_path):
    whole = through(points(), tmp_path / "whole.safetensors", optimizer=optimizer)
    parts = through(points(), tmp_path / "parts.safetensors", optimizer=optimizer, stops=[8, 17])
    assert parts[0] == whole[0] and same(parts[1], whole[1]) and same(parts[2], whole[2])


def test_a_finished_run_yields_nothing_more(tmp_path):
    options = dict(steps=3, checkpoint=tmp_path / "c.safetensors", resume=True)
    assert len(list(fit(small(), points(), **options))) == 3
    d = small(seed=9)
    assert list(fit(d, points(), **options)) == []


def test_without_resume_a_run_starts_again(tmp_path):
    path = tmp_path / "c.safetensors"
    list(fit(small(), points(), steps=3, checkpoint=path))
    assert [s.number for s in fit(small(), points(), steps=3, checkpoint=path)] == [1, 2, 3]


def test_the_checkpoint_holds_recipe_and_settings(tmp_path):
    path = tmp_path / "deep" / "er" / "c.safetensors"
    numbers = []
    for step in fit(small(), points(), steps=5, checkpoint=path, every=2, recipe=dict(command="x", tries=[1, 2])):
        numbers.append(read_checkpoint(path)[2]["step"] if path.exists() else None)
    assert numbers == [None, 2, 2, 4, 5]
    _, _, saved = read_checkpoint(path)
    assert saved["recipe"] == dict(command="x", tries=[1, 2])
    assert saved["run"] == dict(steps=5, lr=1e-3, batch_size=128, seed=0, ema=0.999, clip=1.0)
    assert same(weights(td.load_checkpoint(path).net), weights(step.denoiser.net))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(steps=9), "steps was 4, is 9"),
        (dict(lr=0.5), "lr was 0.001, is 0.5"),
        (dict(batch_size=7), "batch_size was 128, is 7"),
        (dict(seed=1), "seed was 0, is 1"),
        (dict(ema=0.5), "ema was 0.999, is 0.5"),
        (dict(clip=2.0), "clip was 1.0, is 2.0"),
        (dict(seed=1, lr=0.5), "lr was 0.001, is 0.5; seed was 0, is 1"),
    ],
)
def test_resuming_with_other_settings_is_refused(change, message, tmp_path):
    path = tmp_path / "c.safetensors"
    list(fit(small(), points(), steps=4, checkpoint=path))
    with pytest.raises(ValueError, match=rf"c\.safetensors is from a run with other settings \({message}\)"):
        next(fit(small(), points(), checkpoint=path, resume=True, **dict(steps=4) | change))


def test_resuming_another_denoiser_is_refused(tmp_path):
    path, d = tmp_path / "c.safetensors", small()
    list(fit(d, points(), steps=4, checkpoint=path))
    wide = replace(d, net=td.models.MLP(width=32, depth=2, fourier=4))
    for other, message in [
        (replace(d, target=td.targets.eps), r"target was {'name': 'v'}, is {'name': 'eps'}"),
        (replace(d, schedule=td.Flow()), "schedule was .*Cosine.*, is .*Flow"),
        (wide, "net was .*'width': 16.*, is .*'width': 32"),
    ]:
        with pytest.raises(ValueError, match=message):
            next(fit(other, points(), steps=4, checkpoint=path, resume=True))


def test_resuming_what_is_no_run_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    td.save_checkpoint(path, small())
    with pytest.raises(ValueError, match="holds a denoiser only, not the state of a run"):
        next(fit(small(), points(), steps=4, checkpoint=path, resume=True))
    with pytest.raises(ValueError, match="resume=True needs checkpoint="):
        next(fit(small(), points(), steps=4, resume=True))
