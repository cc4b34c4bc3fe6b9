"""A denoiser says what it believes of a noisy x: `denoiser(x, t, **cond) -> Prediction`, and it has a `.schedule`.

Samplers, guidance, likelihoods and metrics know only this. The exact ones are in `exact`; here is the one that wraps
a network, and the one that wraps any function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from tinydiff.models import Codec
from tinydiff.schedules import Coefs, Schedule, Times, batch_times
from tinydiff.targets import Prediction, Target, Variance, check_target, decode


@runtime_checkable
class Denoiser(Protocol):
    """Anything that can be called like this. x is (b, ...), t is (b,) or one number in [0, 1]."""

    schedule: Schedule

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction: ...


# ---- how a network is told the time, and what scale it sees --------------------------------------


def c_noise_ddpm(c: Coefs) -> Tensor:
    """1000 t: DDPM's step number, the same whatever the grid."""
    return 1000 * c.t


def c_noise_edm(c: Coefs) -> Tensor:
    """log(sigma / alpha) / 4 (Karras et al. 2022, table 1)."""
    return -c.logsnr / 8


def c_in_one(c: Coefs) -> float:
    """The network sees x as it is."""
    return 1.0


@dataclass(frozen=True)
class c_in_edm:
    """1 / sqrt(sigma^2 + alpha^2 sigma_data^2): the network sees unit variance (Karras et al. 2022, eq. 7)."""

    sigma_data: float = 0.5

    def __call__(self, c: Coefs) -> Tensor:
        return (c.sigma**2 + c.alpha**2 * self.sigma_data**2).rsqrt()


@dataclass(frozen=True)
class interpolated_variance:
    """Improved DDPM's learned variance (Nichol & Dhariwal 2021, eq. 15) from the network's second half of channels.

    log var = f log beta + (1 - f) log beta-tilde, with f = (out + 1) / 2: out = 1 is the large variance of the
    chain of steps at hand, out = -1 the small one.
    """

    out: Tensor

    def __call__(self, ct: Coefs, cs: Coefs) -> Tensor:
        large = ct.new_noise(cs) * ct.sigma**2
        f = (self.out + 1) / 2
        return (f * large.log() + (1 - f) * (large * cs.sigma**2 / ct.sigma**2).log()).exp()


# ---- denoisers -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NetDenoiser:
    """A network made a denoiser.

    Args:
        net: called as net(c_in x, c_noise, **cond); returns a tensor like x, or with twice its channels if `var`.
        schedule: where the times get their alpha and sigma from.
        target: what the output means, such as `targets.eps`.
        c_in: coefficients -> what multiplies the network's input.
        c_noise: coefficients -> the number that tells the network the time; by default 1000 t.
        var: None, or what makes a reverse variance of the second half of the output's channels, such as
            `interpolated_variance`.
        codec: None, or for latent diffusion what its x0 is encoded and decoded by (`models.Codec`), so that it is saved
            with the weights: sample(d, d.codec.shape(n, 28), decode=d.codec).

    Raises TypeError if the target is not a function.
    """

    net: nn.Module
    schedule: Schedule
    target: Target
    c_in: Callable[[Coefs], Tensor | float] = c_in_one
    c_noise: Callable[[Coefs], Tensor] = c_noise_ddpm
    var: Callable[[Tensor], Variance] | None = None
    codec: Codec | None = None

    def __post_init__(self) -> None:
        check_target(self.target)

    def output(self, x: Tensor, c: Coefs, **cond: Any) -> tuple[Tensor, Variance | None]:
        """The network's own output in the target's space, (b, ...) like x, and its variance if it has one."""
        noise_level = self.c_noise(c).reshape(-1).to(x)
        out = self.net(self.c_in(c) * x, noise_level, **cond).to(x.dtype)
        var = None
        if self.var is not None:
            out, second = out.chunk(2, dim=1)
            var = self.var(second)
        if out.shape != x.shape:
            raise ValueError(f"net must return a tensor of shape {tuple(x.shape)}, like x; got {tuple(out.shape)}")
        return out, var

    def __call__(self, x: Float[Tensor, "b *d"], t: Times, **cond: Any) -> Prediction:
        c = self.schedule(t, like=x)
        return decode(self.target, c, x, *self.output(x, c, **cond))


@dataclass(frozen=True, eq=False)
class ConsistencyDenoiser:
    """A network made a function that jumps to the data, f(x, t).x0, and at t_min is x itself for any weights.

        (1)  f = c_skip x + c_out F(c_in x, c_noise)
        (2)  c_skip = sd^2 / ((s - s_min)^2 + sd^2),   c_out = sd (s - s_min) / sqrt(s^2 + sd^2),   s = sigma / alpha

    Song et al. 2023, eq. 5 and appendix C: Karras' coefficients with s - s_min in place of s. Where alpha is not 1, x /
    alpha stands for x. A network that was trained as `NetDenoiser(net, EDM(), targets.edm(sd), c_in_edm(sd),
    c_noise_edm)` serves here as it is.

    Args:
        net: called as net(c_in x, c_noise, **cond); returns a tensor like x.
        schedule: with a t_min that is a noise level of its own, such as `EDM()`.
        sigma_data: sd, the standard deviation of the data.
        c_noise: coefficients -> the number that tells the network the time; by default log(s) / 4.
    """

    net: nn.Module
    schedule: Schedule
    sigma_data: float = 0.5
    c_noise: Callable[[Coefs], Tensor] = c_noise_edm

    def __call__(self, x: Float[Tensor, "b *d"], t: Times, **cond: Any) -> Prediction:
        c, first = self.schedule(t, like=x), self.schedule(self.schedule.t_min, like=x)
        level, least, sd = c.sigma / c.alpha, first.sigma / first.alpha, self.sigma_data
        out = self.net(x / c.alpha / (level**2 + sd**2).sqrt(), self.c_noise(c).reshape(-1).to(x), **cond).to(x.dtype)
        if out.shape != x.shape:
            raise ValueError(f"net must return a tensor of shape {tuple(x.shape)}, like x; got {tuple(out.shape)}")
        gap = level - least
        x0 = sd**2 / (gap**2 + sd**2) * (x / c.alpha) + sd * gap / (level**2 + sd**2).sqrt() * out
        return Prediction(x0, (x - c.alpha * x0) / c.sigma)


@dataclass(frozen=True, eq=False)
class NetClassifier:
    """A network that reads the class of noisy data, trained by `losses.classifier_loss` and used by `guidance`.

    Args:
        net: called as net(x, c_noise); returns logits (b, classes).
        schedule, c_noise: as of a NetDenoiser; the schedule must be that of the denoiser which is guided.
    """

    net: nn.Module
    schedule: Schedule
    c_noise: Callable[[Coefs], Tensor] = c_noise_ddpm

    def logits(self, x: Float[Tensor, "b *d"], t: Times) -> Float[Tensor, "b k"]:
        return self.net(x, self.c_noise(self.schedule(t, like=x)).reshape(-1).to(x))

    def log_prob(self, y: Int[Tensor, " b"]) -> Callable[[Tensor, Times], Tensor]:
        """The function (x, t) -> (b,) that `guidance.classifier` asks for: log p_t(y | x), a class for each x."""
        return lambda x, t: self.logits(x, t).log_softmax(1).gather(1, y[:, None])[:, 0]


Wrapped = NetDenoiser | ConsistencyDenoiser | NetClassifier  # what `fit` trains and a checkpoint holds


@dataclass(frozen=True, eq=False)
class _FunctionDenoiser:
    fn: Callable[..., Prediction]
    schedule: Schedule

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        return self.fn(x, batch_times(t, x), **cond)


def denoiser(fn: Callable[..., Prediction], schedule: Schedule) -> Denoiser:
    """Any function (x, t, **cond) -> Prediction made a denoiser."""
    return _FunctionDenoiser(fn, schedule)
