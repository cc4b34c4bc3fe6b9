"""Figures from tensors, with the same colour for the same thing everywhere. Each returns what it drew on.

The colours are those of `notebook.setup`. matplotlib is imported on first use.
"""

import io
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.notebook import COLORS, OTHERS

TRUTH_AREA = "#CCCCCC"  # a tint of the grey of truth, light enough to lie under other points
MARKERS = "osD^vP"
GIF_BYTES = 300_000
STRIP_POINTS = 600  # enough for a panel of two inches, and half the bytes in the notebook


def scatter(
    points: Float[Tensor, "n 2"],
    ax=None,
    title: str = "",
    color: str = COLORS["model"],
    truth: Float[Tensor, "m 2"] | None = None,
    limit: float | None = None,
):
    """Points in the plane, over the truth in grey where it is known. Equal aspect. Returns the axes.

    Both axes run over [-limit, limit], by default as far as nearly all points and truth lie. What falls
    outside is counted in the corner, so that no figure hides a sampler that runs away.
    """
    xy = _points("points", points)
    limit = limit or _limit([points], truth)
    ax = ax or _figure(1, 3.6, 3.6)[1][0]
    if truth is not None:
        ax.scatter(*_points("truth", truth).T, s=2 * _size(truth, ax), color=TRUTH_AREA, lw=0)
    ax.scatter(*xy.T, s=_size(points, ax), color=color, alpha=0.8, lw=0)
    if outside := int((~(abs(xy) <= limit).all(axis=1)).sum()):  # nan is outside, too
        corner = {"x": 0.98, "y": 0.98, "ha": "right", "va": "top", "transform": ax.transAxes}
        ax.text(**corner, s=f"{outside} outside", fontsize=9, backgroundcolor="white")
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ax.set(xlabel="coordinate 1", ylabel="coordinate 2", title=title)
    return ax


def strip(
    frames: Sequence[Float[Tensor, "n 2"]],
    titles: Sequence[str],
    truth: Float[Tensor, "m 2"] | None = None,
    color: str = COLORS["model"],
    limit: float | None = None,
):
    """A process as a row of scatter plots on the same axes, 600 points at most in each. Returns the figure."""
    _check_frames(frames, titles)
    limit = limit or _limit(frames, truth)
    figure, axes = _figure(len(frames), 2.1 * len(frames), 2.5)
    for ax, points, title in zip(axes, frames, titles, strict=True):
        scatter(points[:STRIP_POINTS], ax, title, color, truth, limit)
        ax.label_outer()
    return figure


def animate(
    frames: Sequence[Float[Tensor, "n 2"]],
    titles: Sequence[str] | None = None,
    truth: Float[Tensor, "m 2"] | None = None,
    color: str = COLORS["model"],
    limit: float | None = None,
    fps: int = 8,
):
    """A process as a GIF that repeats and rests on the last frame. Returns an IPython Image.

    Raises ValueError if the GIF is over 300 kB: 40 frames of 1,000 points fit.
    """
    titles = [""] * len(frames) if titles is None else titles
    _check_frames(frames, titles)
    import numpy as np
    from IPython.display import Image
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image as Picture

    limit = limit or _limit(frames, truth)
    pictures = []
    for points, title in zip(frames, titles, strict=True):
        figure = Figure((3.6, 3.7), dpi=80, layout="constrained")  # not pyplot's: it would be shown as well
        scatter(points, figure.subplots(), title or " ", color, truth, limit)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(Picture.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    palette = pictures[-1].quantize(32)  # one palette, no dithering: frames differ only where points moved
    pictures = [picture.quantize(palette=palette, dither=Picture.Dither.NONE) for picture in pictures]
    times = [1000 // fps] * (len(pictures) - 1) + [1500]
    gif = io.BytesIO()
    pictures[0].save(gif, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True)
    if gif.tell() > GIF_BYTES:
        size = f"{gif.tell() // 1000} kB; take fewer of them or fewer points"
        raise ValueError(f"frames must give at most {GIF_BYTES // 1000} kB, got {size}")
    return Image(data=gif.getvalue(), format="gif")


def image_grid(
    images: Float[Tensor, "n c h w"],
    columns: int = 10,
    rows: Sequence[str] = (),
    titles: Sequence[str] = (),
    title: str = "",
    ax=None,
):
    """Images in [-1, 1], grey (c = 1) or colour (c = 3), row by row. Returns the axes.

    `rows` and `titles` are labels for the rows and the columns. Values beyond the range are clipped.
    """
    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (n, 1 or 3, h, w) with n > 0, got {tuple(images.shape)}")
    n, c, h, w = images.shape
    columns = min(columns, n)
    height = -(-n // columns)
    for name, labels, count in (("rows", rows, height), ("titles", titles, columns)):
        if len(labels) not in (0, count):
            raise ValueError(f"{name} must hold {count} labels or none, got {len(labels)}")
    # white lines one pixel wide between the images, and white where the last row is not full
    page = torch.ones(height * columns, c, h + 1, w + 1)
    page[:n, :, :h, :w] = images.detach().cpu().float().clamp(-1, 1)
    page = page.view(height, columns, c, h + 1, w + 1).permute(0, 3, 1, 4, 2).reshape(height * (h + 1), -1, c)
    if ax is None:
        size = 0.6 if h <= 16 else 0.9
        ax = _figure(1, size * columns + (1.0 if rows else 0.2), size * height * h / w + 0.5)[1][0]
    ax.imshow(page[:-1, :-1].add(1).div(2).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_yticks([(h + 1) * r + h / 2 - 0.5 for r in range(len(rows))], rows)
    ax.set_xticks([(w + 1) * k + w / 2 - 0.5 for k in range(len(titles))], titles)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    return ax


def curve(x: Float[Tensor, " n"], ys: Mapping[str, Tensor], xlabel: str, ylabel: str, title: str = "", ax=None):
    """Lines over x, one for each name in `ys`. Returns the axes (for `ax.set_xscale("log")` and the like).

    A value (n,) is a line; a value (seeds, n) is the mean over the seeds, with bars of two standard errors.
    The names "data", "model", "truth" and "noise" have their colours; "truth" is dashed, without markers.
    """
    if len(ys.keys() - COLORS.keys()) > len(OTHERS):
        raise ValueError(f"ys may hold {len(OTHERS)} names besides {', '.join(COLORS)}, got {', '.join(ys)}")
    ax = ax or _figure(1, 5.0, 3.4)[1][0]
    others = iter(zip(OTHERS, MARKERS[1:], strict=True))
    for name, y in ys.items():
        if y.ndim not in (1, 2) or y.shape[-1] != len(x):
            raise ValueError(f"ys[{name!r}] must end in {len(x)} values, got shape {tuple(y.shape)}")
        y = torch.atleast_2d(y.detach().cpu().double())
        bars = 2 * y.std(dim=0) / len(y) ** 0.5 if len(y) > 1 else None
        color, marker = (COLORS[name], MARKERS[0]) if name in COLORS else next(others)
        style = {"ls": "--"} if name == "truth" else {"marker": marker, "ms": 4, "capsize": 3}
        ax.errorbar(x.detach().cpu().numpy(), y.mean(dim=0).numpy(), bars, label=name, color=color, **style)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if len(ys) > 1:
        ax.legend()
    return ax


def _figure(columns: int, width: float, height: float):
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(width, height), dpi=80, layout="compressed")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _points(name: str, x: Tensor):
    if x.ndim != 2 or x.shape[1] != 2 or len(x) == 0:
        raise ValueError(f"{name} must have shape (n, 2) with n > 0, got {tuple(x.shape)}")
    return x.detach().cpu().double().numpy()


def _size(points: Tensor, ax) -> float:
    return min(max(2200 / len(points), 1.4), 5.0) * ax.bbox.width / ax.figure.dpi  # smaller in small panels


def _limit(frames: Sequence[Tensor], truth: Tensor | None) -> float:
    shown = [*frames] if truth is None else [*frames, truth]
    sizes = torch.cat([points.detach().cpu().abs().flatten() for points in shown])
    sizes = sizes[sizes.isfinite()].sort().values
    return 1.15 * sizes[int(0.998 * (len(sizes) - 1))].item() or 1.0 if len(sizes) else 1.0


def _check_frames(frames: Sequence[Tensor], titles: Sequence[str]) -> None:
    if len(frames) == 0:
        raise ValueError("frames must hold at least one tensor of points, got none")
    if len(titles) != len(frames):
        raise ValueError(f"titles must hold one for each of the {len(frames)} frames, got {len(titles)}")
    for k, points in enumerate(frames):
        _points(f"frames[{k}]", points)
