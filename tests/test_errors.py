"""Bad input is refused, with a message that names what is wrong and what was given.

The checks of shapes that unit tests switch on would come first, so they are off here: this is what a reader sees.
"""

import math

import jaxtyping
import pytest
import torch

import tinydiff as td
from tinydiff import samplers, targets


@pytest.fixture(autouse=True)
def as_a_reader():
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


X = torch.zeros(3, 2)
MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])


def refused(match, error=ValueError):
    return pytest.raises(error, match=match)


def mixture(means=MEANS, std=0.1, weights=None, **options):
    return td.GaussianMixture(means, std, weights, td.VP(), **options)


# ---- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [torch.full((2,), 0.5), torch.full((3, 1), 0.5), torch.full((3, 2), 0.5)])
def test_times_of_a_wrong_shape(t):
    with refused(rf"t must have shape \(3,\) to go with x of shape \(3, 2\); got \({t.shape[0]},"):
        td.VP()(t, like=X)
    with refused("t must have shape"):
        mixture()(X, t)


@pytest.mark.parametrize("t", [-0.01, 1.01, 999, math.nan, torch.tensor([0.5, math.nan, 0.5])])
def test_times_outside_the_range(t):
    with refused(r"t must lie in \[0, 1\]; got values from"):
        td.VP()(t, like=X)
    with refused(r"t must lie in \[0, 1\]"):
        td.EDM().sigma(t)
    with refused(r"t must lie in \[0, 1\]"):
        td.denoiser(lambda x, t: td.Prediction(x, x), td.VP())(X, t)


def test_the_message_says_how_far_outside():
    with refused("got values from -0.5 to 2$"):
        td.VP()(torch.tensor([0.1, 2.0, -0.5]), like=X)


# ---- schedules and grids -------------------------------------------------------------------------


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.0], [-0.1, 0.1], [0.1, 1.2], [math.nan], [], [[0.1, 0.2]]])
def test_betas_outside_the_range(betas):
    with refused("betas must be a vector of numbers strictly between 0 and 1; got"):
        td.DiscreteVP(betas)
    with refused("betas must be a vector"):
        td.DiscreteVP(torch.tensor(betas))


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps(steps):
    for betas in (td.linear_betas, td.cosine_betas, td.scaled_linear_betas):
        with refused(f"steps must be at least 1; got {steps}"):
            betas(steps)
    with refused(f"n must be at least 1 step; got {steps}"):
        td.grid(td.VP(), steps)


def test_spacing_by_logsnr_where_there_is_no_signal():
    for S in (td.Cosine(math.inf), td.Flow(math.inf)):
        for spacing in (td.logsnr_uniform, td.karras()):
            with refused(rf"needs a finite log-SNR, but {type(S).__name__}\(.*inf\) has alpha = 0 at t = 1"):
                td.grid(S, 5, spacing)


def test_spacings_in_steps_need_a_chain_that_is_long_enough():
    S = td.DiscreteVP(td.linear_betas(10))
    for spacing in (td.leading, td.trailing, td.strided, td.quadratic):
        with refused(r"need a DiscreteVP of at least n = 11 steps; got DiscreteVP\(10 betas"):
            td.grid(S, 11, spacing)
        for other in (td.VP(), td.EDM()):
            with refused(r"need a DiscreteVP of at least n = 5 steps; got (VP|EDM)"):
                td.grid(other, 5, spacing)


# ---- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["eps", None, 3])
def test_a_target_that_is_no_function(target):
    with refused(rf"target must be a function .* such as tinydiff.targets.eps .*got {target!r}", TypeError):
        td.NetDenoiser(torch.nn.Identity(), td.VP(), target)
    with refused("target must be a function", TypeError):
        targets.check_target(target)


@pytest.mark.parametrize("target", [targets.eps, targets.score], ids=["eps", "score"])
@pytest.mark.parametrize("S", [td.Cosine(math.inf), td.Flow(math.inf)], ids=["Cosine", "Flow"])
def test_noise_cannot_be_decoded_where_there_is_no_signal(target, S):
    with refused(rf"the target {target.__name__} cannot be decoded at some of the times t = \[0.5, 1.0\].*use v"):
        td.decode(target, S(torch.tensor([0.5, 1.0]), like=X[:2]), X[:2], X[:2])
    for cut in (td.Cosine(), td.Flow()):
        assert td.decode(target, cut(1.0, like=X), X, X).x0.isfinite().all()


def test_x0_cannot_be_decoded_where_there_is_no_noise():
    with refused(r"the target x0 cannot be decoded .*t = \[0.0\].*sigma = 0 for x0"):
        td.decode(targets.x0, td.VP()(0.0, like=X), X, X)


# ---- networks ------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, x, t):
        return self.rule(x)


@pytest.mark.parametrize("rule", [lambda x: x[:, :1], lambda x: x.repeat(1, 2), lambda x: x[..., None]])
def test_a_network_output_of_a_wrong_shape(rule):
    d = td.NetDenoiser(Net(rule), td.VP(), targets.eps)
    for call in (lambda: d(X, 0.5), lambda: td.denoising_loss(d, X, 0.5), lambda: td.sample(d, (3, 2), n=2, seed=0)):
        with refused(r"net must return a tensor of shape \(3, 2\), like x; got \(3"):
            call()


def test_a_network_without_the_channels_for_its_variance():
    d = td.NetDenoiser(Net(lambda x: x), td.VP(), targets.eps, var=td.denoisers.interpolated_variance)
    with refused(r"net must return a tensor of shape \(3, 2\), like x; got \(3, 1\)"):
        d(X, 0.5)


def test_a_learned_variance_that_is_missing():
    with refused(r"var=learned needs a denoiser that predicts a variance: NetDenoiser\(..., var=interpolated_variance"):
        td.final(td.ancestral(mixture(), X, td.grid(td.VP(), 3), var=samplers.learned))


# ---- samplers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ts",
    [[0.0, 1.0], [0.5, 0.5, 0.0], [1.0, 0.2, 0.3], [1.0], [], [1.5, 0.5], [0.5, -0.1], [1.0, math.nan, 0.0]],
    ids=str,
)
def test_times_that_do_not_fall(ts):
    ts = torch.tensor(ts)
    with refused(r"ts must be at least two decreasing times in \[0, 1\]; got \["):
        td.pairs(ts)
    for sampler in (td.ddim, td.ancestral):
        with refused("ts must be at least two decreasing times"):
            td.final(sampler(mixture(), X, ts))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_outside_the_range(eta):
    with refused(r"eta must lie in \[0, 1\]; got"):
        td.final(td.ddim(mixture(), X, td.grid(td.VP(), 3), eta=eta))


# ---- exact denoisers -----------------------------------------------------------------------------


@pytest.mark.parametrize("means", [torch.zeros(3), torch.zeros(2, 1, 2), torch.tensor([[0.0, math.nan]])])
def test_means_of_a_wrong_shape(means):
    with refused(r"means must be finite and of shape \(k, d\); got shape \("):
        mixture(means)


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf, torch.tensor([0.1, -0.1])])
def test_negative_std(std):
    with refused(r"std must be at least 0; got \["):
        mixture(std=std)


@pytest.mark.parametrize("weights", [[0.5], [0.5, 0.0], [0.5, -1.0], [0.5, math.nan], [0.2, 0.3, 0.5], [1.0, math.inf]])
def test_weights_that_do_not_fit(weights):
    with refused(r"weights must be 2 positive numbers, one a mean; got \["):
        mixture(weights=weights)


def test_labels_of_components_that_do_not_fit():
    with refused(r"labels must have shape \(2,\), one a mean; got \(3,\)"):
        mixture(labels=torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("y", [torch.tensor([0, 1]), torch.tensor([0, 1, 3]), torch.tensor([0, 1, -1])])
def test_classes_that_are_none(y):
    for call in (mixture(), mixture().log_prob, mixture().score):
        with refused(r"y must be \(3,\) classes from 0 to 2 \(no class given\); got"):
            call(X, 0.5, y)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(3, 3), torch.zeros(3, 2, 1)])
def test_x_of_another_dimension(x):
    with refused(r"x must have shape \(b, 2\); got \(3"):
        mixture()(x, 0.5)


def test_the_denoiser_of_a_data_set():
    with refused(r"data must be finite and not empty; got shape \(0, 2\)"):
        td.IdealDenoiser(torch.zeros(0, 2), td.VP())
    with refused("data must be finite"):
        td.IdealDenoiser(torch.tensor([[math.inf]]), td.VP())
    d = td.IdealDenoiser(torch.zeros(4, 1, 8, 8), td.VP())
    with refused(r"x must have shape \(b, 1, 8, 8\); got \(3, 2\)"):
        d(X, 0.5)
    with refused("made without labels: pass y="):
        d(torch.zeros(2, 1, 8, 8), 0.5, y=torch.tensor([0, 1]))


def test_a_class_that_nothing_has():
    labels = torch.tensor([0, 2])  # class 1 has no component
    with refused(r"y names a class that no component has; labels are \[0, 2\]"):
        mixture(labels=labels)(X, 0.5, y=torch.tensor([0, 1, 2]))
    with refused(r"y names a label that no data point has; labels are \[0, 2\]"):
        td.IdealDenoiser(MEANS, td.VP(), y=labels)(X, 0.5, y=torch.tensor([0, 1, 2]))


# ---- solvers, flows, conditions ------------------------------------------------------------------


def test_pairs_that_do_not_fit():
    with refused(r"eps must have the shape of x0, \(3, 2\); got \(2, 2\)"):
        td.flow.paired_by_transport(X, X[:2])
    with refused(r"a and b must have one shape; got \(3, 2\) and \(2, 2\)"):
        td.slerp(X, X[:2], 0.5)


def test_a_condition_that_does_not_fit():
    for known, mask in ((X[0], torch.tensor([True])), (X[0][:1], torch.tensor([True, False]))):
        with refused(r"known and mask must be \(2,\), mask true for some of them"):
            td.exact.conditional(mixture(), known, mask)
    for mask in (torch.ones(4, 2, dtype=torch.bool), torch.ones(3, 2, 1, dtype=torch.bool)):
        with refused(r"known must have shape \(3, 2\), like x, and mask must broadcast to it"):
            next(td.predictor_corrector(mixture(), X, td.grid(td.VP(), 2), known=X, mask=mask))
