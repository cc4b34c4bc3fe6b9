"""Attributes of pictures of shapes: what was asked for, against what the oracle reads."""

import math

import pytest
import torch

from tinydiff import datasets, metrics
from tinydiff.datasets import captions


@pytest.fixture(scope="module")
def real():
    data = datasets.shapes("shapes32-2", n=60, conditions=("attributes", "relations"))
    items = [data[i] for i in range(60)]
    asked = metrics.Read(*(torch.stack([item[k] for item in items]) for k in ("attributes", "relations")))
    return torch.stack([item["x0"] for item in items]), asked


def test_real_pictures_have_all(real):
    images, asked = real
    read = metrics.read_shapes(images)
    assert torch.equal(read.attributes, asked.attributes) and torch.equal(read.relations, asked.relations)
    assert set(metrics.attribute_accuracy(read, asked)) == {1.0}


def of(*texts):
    return metrics.described(captions.parse(text) for text in texts)


def test_each_share_by_hand():
    asked = of("a small red circle above a large blue square", "a small green cross")
    read = of("a small red circle left of a large red square", "a large yellow cross")
    found = metrics.attribute_accuracy(read, asked)
    assert found.size == pytest.approx(2 / 3) and found.colour == pytest.approx(1 / 3)
    assert found.shape == found.texture == found.objects == 1
    assert found.relation == 0 and found.binding == pytest.approx(1 / 3) and found.exact == 0
    right, wrong = "a small red circle above a large blue square", "a small blue circle above a large red square"
    swapped = metrics.attribute_accuracy(of(wrong), of(right))
    assert swapped.shape == 1 and swapped.binding == swapped.colour == 0


def test_one_picture_said_two_ways_is_one():
    found = metrics.attribute_accuracy(
        of("a large blue square below a small red circle"), of("a small red circle above a large blue square")
    )
    assert found.exact == found.relation == 1


def test_an_object_too_many_or_too_few_is_not_exact():
    one, two = of("a small red circle"), of("a small red circle above a large blue square")
    more, less = metrics.attribute_accuracy(two, one), metrics.attribute_accuracy(one, two)
    assert more.objects == less.objects == more.exact == less.exact == 0
    assert more.shape == 1 and less.shape == 0.5 and math.isnan(more.relation) and less.relation == 0


def test_textures_may_be_left_out():
    asked, read = of("a small red striped circle"), of("a small red circle")
    assert metrics.attribute_accuracy(read, asked).exact == 0
    assert metrics.attribute_accuracy(read, asked, textures=False).exact == 1


def test_numbers_that_differ_are_named():
    with pytest.raises(ValueError, match="as many pictures; got 1 and 2"):
        metrics.attribute_accuracy(of("a small red circle"), of("a small red circle", "a small red circle"))
