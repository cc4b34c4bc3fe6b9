"""The 8 x 8 digits: range, labels, and a split that is the same everywhere."""

import torch

from tinydiff.datasets import digits, digits_test, digits_train


def test_shape_range_and_levels():
    x0, y = digits()
    assert x0.shape == (1797, 1, 8, 8) and x0.dtype == torch.float32
    assert y.shape == (1797,) and y.dtype == torch.int64
    assert torch.equal(x0.unique(), torch.arange(17) / 8 - 1)
    assert torch.equal(y.unique(), torch.arange(10))


def test_pixels_are_scikit_learns_the_right_way_up():
    from sklearn.datasets import load_digits

    raw = load_digits()
    assert torch.equal(digits().x0[7, 0], torch.from_numpy(raw.images[7] / 8 - 1).float())
    assert digits().y[:10].tolist() == list(raw.target[:10])


def test_split_is_a_partition():
    rows = [set(map(tuple, part.x0.flatten(1).tolist())) for part in (digits(), digits_train(), digits_test())]
    assert len(digits_train().y) == 1437 and len(digits_test().y) == 360
    assert len(rows[0]) == 1797  # no two digits are equal, so rows can stand for their index
    assert rows[1] | rows[2] == rows[0] and not rows[1] & rows[2]


def test_labels_stay_with_their_images():
    label = {tuple(x): y for x, y in zip(digits().x0.flatten(1).tolist(), digits().y.tolist(), strict=True)}
    for part in (digits_train(), digits_test()):
        assert [label[tuple(x)] for x in part.x0.flatten(1).tolist()] == part.y.tolist()


def test_split_is_stratified():
    share = digits_test().y.bincount() / digits().y.bincount()
    assert (share * 1797 - 360).abs().max() < 10  # each class within one image of its share: 1797 / 174


def test_split_never_changes():
    # a change here would silently mix what checkpoints were trained on with what they are tested on
    assert digits_test().y[:10].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]
    assert torch.equal(digits_test().x0, digits_test().x0)


def test_parts_are_named_and_unpack():
    batch = digits_test()._asdict()
    assert list(batch) == ["x0", "y"] and len(batch["x0"]) == len(batch["y"])
