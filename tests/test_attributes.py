"""Attributes of pictures of shapes: what was asked for, against what the oracle reads."""

import math

import pytest
import torch

from tinydiff import datasets, metrics
from tinydiff.checkpoints import load_network, save_network
from tinydiff.datasets import captions, scenes
from tinydiff.models import SceneClassifier
from tinydiff.recipes import shapes_classifier


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


# ---- the classifier ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_classifier_says_what_the_data_set_says(size):
    torch.manual_seed(0)
    net = SceneClassifier(size=size, width=16).eval()
    x = torch.randn(5, 3, size, size)
    attributes, relations = net(x)
    assert [tuple(part.shape) for part in attributes] == [(5, 3, k) for k in (3, 7, 4, 7)]
    assert relations.shape == (5, 2, 3) and net.features(x).shape == (5, 16)
    read = metrics.Read(*net.read(x))
    assert read.attributes.shape == (5, 3, 4) and read.relations.shape == (5, 2)
    assert all(torch.equal(read.attributes[..., k], part.argmax(2)) for k, part in enumerate(attributes))
    with pytest.raises(ValueError, match=f"must be \\(b, 3, {size}, {size}\\)"):
        net(torch.randn(5, 1, size, size))


def test_its_numbers_have_room_for_all_words():
    net = SceneClassifier()
    words = (scenes.SIZES, scenes.COLOURS, scenes.TEXTURES, scenes.SHAPES)
    assert net.config["kinds"] == [1 + len(kind) for kind in words]
    assert net.config["relations"] == 1 + len(scenes.RELATIONS) and net.config["objects"] == scenes.OBJECTS


def test_its_loss_is_that_of_each_thing_told():
    """Each logit counts for the thing at its place: with one raised, only that thing's loss falls."""
    torch.manual_seed(0)
    net, x = SceneClassifier(size=16, width=8).eval(), torch.randn(2, 3, 16, 16)
    attributes, relations = torch.randint(0, 3, (2, 3, 4)), torch.randint(0, 3, (2, 2))
    logits, related = net(x)
    due = [-part.log_softmax(2).gather(2, attributes[..., k, None]).mean() for k, part in enumerate(logits)]
    due.append(-related.log_softmax(2).gather(2, relations[..., None]).mean())
    assert torch.allclose(net.loss(x, attributes, relations), torch.stack(due).mean(), atol=1e-6)


def test_it_learns_and_is_saved_and_read(tmp_path):
    """After 150 steps on 300 pictures it knows them: seeds 0 to 2 read all of their colours, chance is 1 in 4."""
    s = shapes_classifier.Settings(pictures=60, steps=150, samples=40)
    net = shapes_classifier.train(s)
    known = shapes_classifier.pictures(s, 60, shapes_classifier.OTHER_SEED)
    asked = metrics.Read(known["attributes"], known["relations"])
    assert len(known["x0"]) == 60 * len(shapes_classifier.SPLITS)
    assert metrics.attribute_accuracy(shapes_classifier.read(net, known["x0"]), asked).colour > 0.8
    save_network(tmp_path / "a.safetensors", net)
    back = load_network(tmp_path / "a.safetensors")
    assert torch.equal(back.features(known["x0"][:4]), net.features(known["x0"][:4]))
    found = shapes_classifier.evaluate(net, s)
    assert 0 <= found["agrees_with_oracle"] <= 1 and found.keys() > {"exact", "relation", "binding"}


def test_a_disturbed_picture_is_still_there():
    torch.manual_seed(0)
    x = torch.ones(400, 3, 8, 8).cumsum(3) / 8
    out = shapes_classifier.disturbed(x, 0.05)
    assert (out - x).std() == pytest.approx(0.05, rel=0.2) and (out - x).mean().abs() < 2e-3
    flat = shapes_classifier.disturbed(x, 0.0)
    assert 0.4 < (flat == x).all(3).all(2).all(1).double().mean() < 0.6
