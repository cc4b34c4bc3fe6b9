"""Figures: what is drawn where, in which colour, and how large an animation gets."""

import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from tinydiff.datasets import digits, swiss_roll
from tinydiff.plotting import COLORS, TRUTH_AREA, animate, curve, image_grid, scatter, strip


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_colours_differ_also_without_hue():
    assert list(COLORS) == ["data", "model", "truth", "noise"] and len(set(COLORS.values())) == 4


def test_scatter_draws_points_over_the_truth_on_equal_labelled_axes():
    points, truth = swiss_roll(50, seed=1), swiss_roll(80, seed=2)
    ax = scatter(points, truth=truth, title="a finding")
    below, above = ax.collections
    np.testing.assert_allclose(below.get_offsets(), truth, atol=1e-6)
    np.testing.assert_allclose(above.get_offsets(), points, atol=1e-6)
    assert to_hex(below.get_facecolor()[0]).upper() == TRUTH_AREA
    assert to_hex(above.get_facecolor()[0]).upper() == COLORS["model"]
    assert ax.get_aspect() == 1 and ax.get_xlim() == ax.get_ylim() and not ax.texts
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("coordinate 1", "coordinate 2", "a finding")


def test_scatter_counts_what_it_does_not_show():
    points = torch.tensor([[0.0, 0.0], [0.5, 2.0], [-3.0, 0.0], [float("nan"), 0.0]])
    ax = scatter(points, limit=1.0)
    assert ax.get_xlim() == (-1, 1)
    assert [text.get_text() for text in ax.texts] == ["3 outside"]


def test_scatter_draws_on_the_axes_given_and_leaves_gradients_alone():
    _, axes = plt.subplots()
    assert scatter(torch.zeros(3, 2, requires_grad=True), ax=axes, color=COLORS["noise"]) is axes


def test_strip_shares_its_limits_and_titles():
    frames = [3 * swiss_roll(50), swiss_roll(50)]
    figure = strip(frames, ["t = 1", "t = 0"], truth=swiss_roll(50, seed=3))
    assert [ax.get_title() for ax in figure.axes] == ["t = 1", "t = 0"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert figure.axes[0].get_xlim()[1] > frames[0].abs().max()
    assert all(len(ax.collections) == 2 for ax in figure.axes)


def test_nothing_is_cut_off_at_the_edge():
    # a layout that ignores equal aspect cuts the titles
    figure = strip([swiss_roll(50)] * 5, ["t = 1"] * 5)
    figure.canvas.draw()
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_animation_is_a_small_gif_with_all_frames():
    from PIL import Image

    frames = [swiss_roll(300, noise=0.05 * k, seed=1) for k in range(5, -1, -1)]
    gif = animate(frames, titles=[str(k) for k in range(6)], truth=swiss_roll(300), fps=10)
    assert gif.format == "gif" and len(gif.data) < 300_000
    with Image.open(io.BytesIO(gif.data)) as picture:
        assert picture.n_frames == 6 and picture.info["loop"] == 0
        assert picture.info["duration"] == 100
        first = np.asarray(picture.convert("RGB")).astype(int)
        picture.seek(5)
        assert picture.info["duration"] == 1500
        last = np.asarray(picture.convert("RGB")).astype(int)
    assert (first != last).any()
    orange = np.array([int(COLORS["model"][k : k + 2], 16) for k in (1, 3, 5)])
    assert (np.abs(last - orange).max(axis=2) < 40).sum() > 300  # the palette kept the colour of the model
    assert not plt.get_fignums()  # an open figure would be shown by the notebook beside the GIF


def test_animation_at_the_size_that_its_documentation_names():
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    roll = swiss_roll(1000)
    frames = [(1 - k / 39) ** 0.5 * noise + (k / 39) ** 0.5 * roll for k in range(40)]
    assert len(animate(frames, truth=roll).data) < 300_000


def test_animation_refuses_to_be_large(monkeypatch):
    monkeypatch.setattr("tinydiff.plotting.GIF_BYTES", 2000)
    with pytest.raises(ValueError, match="frames must give at most 2 kB, got .* kB; take fewer"):
        animate([swiss_roll(100)] * 2)


def test_image_grid_puts_images_row_by_row_in_a_fixed_range():
    images = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 4, 6).clone()
    images[0, 0, 0, 5] = 7.0  # beyond the range, in the upper right corner
    page = image_grid(images, columns=3).images[0].get_array()
    assert page.shape == (2 * 5 - 1, 3 * 7 - 1)
    assert page[2, 2] == 0.0 and page[2, 9] == 0.25 and page[2, 16] == 0.5  # first row
    assert page[7, 2] == 0.75 and page[7, 9] == 1.0 and (page[5:, 14:] == 1.0).all()  # second, not full
    assert (page[4] == 1.0).all() and (page[:, 6] == 1.0).all()  # lines between
    assert page[0, 5] == 1.0 and page[0, 0] == 0.0  # clipped, and the right way round


def test_image_grid_shows_colour_and_labels_rows_and_columns():
    ax = image_grid(torch.zeros(6, 3, 4, 4), columns=3, rows=["a", "b"], titles=["x", "y", "z"], title="all")
    assert ax.images[0].get_array().shape == (9, 14, 3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert list(ax.get_yticks()) == [1.5, 6.5] and list(ax.get_xticks()) == [1.5, 6.5, 11.5]  # in the middle
    assert image_grid(digits().x0[:3]).images[0].get_clim() == (0, 1)


def test_curve_draws_means_with_two_standard_errors():
    x = torch.tensor([1.0, 2.0])
    y = torch.tensor([[1.0, 4.0], [3.0, 4.0], [2.0, 7.0], [2.0, 5.0]])
    ax = curve(x, {"model": y, "Heun": y[0], "truth": torch.zeros(2)}, "calls", "error", "finding")
    model, heun, truth = ax.containers
    assert model[0].get_ydata().tolist() == [2.0, 5.0]
    low, high = np.array(model[2][0].get_segments())[:, :, 1].T
    np.testing.assert_allclose((high - low) / 2, 2 * y.std(dim=0) / 2, atol=1e-6)  # root of 4 seeds is 2
    assert not heun.has_yerr and truth[0].get_linestyle() == "--"
    assert model[0].get_color() == COLORS["model"] and truth[0].get_color() == COLORS["truth"]
    assert heun[0].get_color() not in COLORS.values()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["model", "Heun", "truth"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("calls", "error", "finding")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: strip([], []), "frames must hold at least one"),
        (lambda: strip([torch.zeros(3, 2)], []), "titles must hold one for each of the 1 frames, got 0"),
        (lambda: scatter(torch.zeros(0, 2)), r"points must have shape \(n, 2\) with n > 0, got \(0, 2\)"),
        (lambda: image_grid(torch.zeros(2, 2, 4, 4)), r"images must have shape \(n, 1 or 3, h, w\)"),
        (lambda: image_grid(torch.zeros(4, 1, 4, 4), columns=2, rows=["a"]), "rows must hold 2 labels or none"),
        (lambda: curve(torch.zeros(3), {"a": torch.zeros(2)}, "", ""), r"ys\['a'\] must end in 3 values"),
        (lambda: curve(torch.zeros(1), {c: torch.zeros(1) for c in "abcdef"}, "", ""), "ys may hold 5 names"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
