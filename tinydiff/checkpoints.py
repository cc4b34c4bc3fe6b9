"""Checkpoints: one safetensors file with the weights and, as JSON in its metadata, what rebuilds the denoiser.

No code is ever loaded: a network is rebuilt only out of the classes named in `KNOWN`. For a network, schedule or
target of your own, pass it to `load_checkpoint`.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tinydiff import denoisers, dpm, models, schedules, targets
from tinydiff.denoisers import ConsistencyDenoiser, NetClassifier, NetDenoiser, Wrapped
from tinydiff.schedules import Schedule
from tinydiff.targets import Target

FORMAT = "tinydiff checkpoint 1"
DATA = Path(__file__).resolve().parent.parent / "data" / "checkpoints"

_CLASSES = [models.ConvClassifier, models.DiT, models.MLP, models.NoisyClassifier, models.RBF, models.UNet]
_CLASSES += [models.UNet2015, models.KLAutoencoder, models.VQAutoencoder, models.Identity, models.PatchDiscriminator]
_CLASSES += [models.SceneClassifier, models.TextEncoder, models.WithText, models.Concatenated]
_CLASSES += [dpm.LearnedBetas, dpm.step_mean, targets.edm, denoisers.c_in_edm]
_CLASSES += [getattr(schedules, s) for s in "DiscreteVP VP SubVP VE EDM Cosine Flow Shifted".split()]
_FUNCTIONS = [targets.x0, targets.eps, targets.v, targets.score, targets.velocity]
_FUNCTIONS += [
    denoisers.c_in_one,
    denoisers.c_noise_ddpm,
    denoisers.c_noise_edm,
    denoisers.interpolated_variance,
    dpm.logit_variance,
]
KNOWN = {f.__name__: f for f in _CLASSES + _FUNCTIONS}
PARTS = ("schedule", "target", "c_in", "c_noise", "var", "sigma_data")


def describe(part: Any) -> Any:
    """A JSON description of a schedule, target, network or setting; {"custom": name} for one not in KNOWN."""
    if isinstance(part, Tensor):
        return part.tolist()
    if part is None or isinstance(part, int | float | str | bool | list | tuple | dict):
        return part
    name = getattr(part, "__name__", type(part).__name__)
    known = KNOWN.get(name)
    if known is part:
        return {"name": name}
    if known is not type(part):
        return {"custom": name}
    config = part.config if isinstance(part, nn.Module) else {f.name: getattr(part, f.name) for f in fields(part)}
    return {"class": name, "config": {k: describe(value) for k, value in config.items()}}


def describe_denoiser(d: Wrapped) -> dict[str, Any]:
    """A JSON description of each part of a denoiser, or of a classifier of noisy data, which has no target."""
    described = {part: describe(getattr(d, part)) for part in ("net", *PARTS) if hasattr(d, part)}
    codec = getattr(d, "codec", None)
    return described if codec is None else described | {"codec": describe(codec.autoencoder)}


def rebuild(description: Any, role: str) -> Any:
    """The part that `describe` described. Raises ValueError for one that is not tinydiff's own."""
    if not isinstance(description, dict):
        return description
    name = description.get("name", description.get("class"))
    if name not in KNOWN:
        raise ValueError(
            f"the checkpoint's {role} is {description.get('custom', name)!r}, which is not one of tinydiff's own: "
            f"pass it as load_checkpoint(path, {role}=...)"
        )
    if "name" in description:
        return KNOWN[name]
    try:
        return KNOWN[name](**{k: rebuild(value, role) for k, value in description["config"].items()})
    except TypeError as error:
        raise ValueError(f"the checkpoint's {role} is of another version of tinydiff: {error}") from error


def write_whole(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file whole or not at all: beside it first, flushed to disk, then renamed over it.

    A kill leaves the last whole file, and at worst a hidden `.NAME.partial` that the next call overwrites. One process
    writes a given path at a time.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    copies = {k: t.detach().cpu().clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
    save_file(copies, partial, metadata=dict(metadata))
    with open(partial, "rb+") as f:
        os.fsync(f.fileno())
    os.replace(partial, path)


def save_checkpoint(
    path: str | Path,
    d: Wrapped,
    recipe: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Saves a denoiser, or a classifier of noisy data: weights, description, and how they were made.

    Args:
        recipe: JSON data on how the weights came to be (command, seed, steps, metrics).
        extra: more named tensors (optimiser state, raw weights); `read_checkpoint` returns them.
    """
    codec = getattr(d, "codec", None)
    latent = {} if codec is None else {f"codec.{k}": t for k, t in codec.autoencoder.state_dict().items()}
    _save(path, d.net, describe_denoiser(d), recipe, latent | dict(extra or {}))


def save_network(
    path: str | Path,
    net: nn.Module,
    recipe: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Saves a network alone, such as a classifier, in the same way."""
    _save(path, net, {"net": describe(net)}, recipe, extra)


def _save(path: str | Path, net: nn.Module, description: dict[str, Any], recipe: Any, extra: Any) -> None:
    metadata = {"format": FORMAT, "denoiser": json.dumps(description), "recipe": json.dumps(recipe or {})}
    tensors = {f"net.{k}": t for k, t in net.state_dict().items()}
    write_whole(path, tensors | dict(extra or {}), metadata)


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """(tensors, description, recipe) of a checkpoint.

    Raises FileNotFoundError, or ValueError for a file that is truncated or was not written by tinydiff.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file (cut short, or of another kind): {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by tinydiff: its metadata lack format = {FORMAT!r}")
    try:
        return tensors, json.loads(metadata["denoiser"]), json.loads(metadata["recipe"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"the metadata of {path} cannot be read: {error!r}") from error


def load_checkpoint(
    path: str | Path,
    net: nn.Module | None = None,
    schedule: Schedule | None = None,
    target: Target | None = None,
    c_in: Callable[..., Any] | None = None,
    c_noise: Callable[..., Any] | None = None,
    var: Callable[..., Any] | None = None,
) -> Wrapped:
    """The denoiser of a checkpoint, on the CPU; or its classifier of noisy data.

    Parts that are not tinydiff's own are passed as arguments.

    Raises as `read_checkpoint` does, and ValueError if a part is unknown or the weights do not fit the network.
    """
    tensors, description, _ = read_checkpoint(path)
    if "schedule" not in description:
        raise ValueError(f"{path} holds a network alone, not a denoiser: load_network reads it")
    given = dict(net=net, schedule=schedule, target=target, c_in=c_in, c_noise=c_noise, var=var)
    kind = NetDenoiser if "target" in description else NetClassifier
    if "sigma_data" in description:
        kind, given["sigma_data"] = ConsistencyDenoiser, None
    given = {k: part for k, part in given.items() if k in description}
    parts = {k: rebuild(description[k], k) if part is None else part for k, part in given.items()}
    _fill(path, parts["net"], tensors, own=net is not None)
    if "codec" in description:
        autoencoder = rebuild(description["codec"], "codec")
        _fill(path, autoencoder, tensors, own=False, prefix="codec.")
        parts["codec"] = models.Codec(autoencoder)
    return kind(**parts)


def load_network(path: str | Path) -> nn.Module:
    """The network of a checkpoint, alone: of one that `save_network` wrote, or of a denoiser.

    Raises as `load_checkpoint` does.
    """
    tensors, description, _ = read_checkpoint(path)
    net = rebuild(description["net"], "net")
    _fill(path, net, tensors, own=False)
    return net


def _fill(path: Any, net: nn.Module, tensors: Mapping[str, Tensor], own: bool, prefix: str = "net.") -> None:
    """Gives the network its weights; one of ours in their precision, except that half becomes float32."""
    weights = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    if not own:
        dtype = next((t.dtype for t in weights.values() if t.is_floating_point()), torch.float32)
        net.to(torch.float32 if dtype is torch.float16 else dtype)  # float16 is how weights travel, not how they work
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit the network {type(net).__name__}: {error}") from error
    net.eval()


def shipped(name: str) -> Path:
    """The file of a shipped checkpoint. Raises FileNotFoundError that lists what there is."""
    path = DATA / f"{name}.safetensors"
    if not path.is_file():
        names = sorted(p.stem for p in DATA.glob("*.safetensors"))
        raise FileNotFoundError(f"there is no shipped checkpoint {name!r}; there are: {', '.join(names) or 'none yet'}")
    return path


def load_pretrained(name: str) -> Wrapped:
    """A denoiser, or classifier of noisy data, that ships with the course, by name.

    Raises FileNotFoundError that lists what there is.
    """
    return load_checkpoint(shipped(name))
