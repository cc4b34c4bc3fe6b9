"""Notebook set-up, scale, source on the page, progress: and that importing them costs nothing."""

import dataclasses
import functools
import subprocess
import sys

import matplotlib
import pytest
import torch

from tinydiff import notebook
from tinydiff.notebook import scale, setup, show_source, source
from tinydiff.progress import progress


def twice(f):
    @functools.wraps(f)
    def wrapper(*args):
        return 2 * f(*args)

    return wrapper


@twice
def posterior_mean(x, alpha):
    """First line.

    Second paragraph.
    """

    # the reason
    y = alpha * x
    return y  # DDPM eq. 7


@dataclasses.dataclass(frozen=True)
class Line:
    """A class."""

    slope: float = 2.0

    @property
    def double(self):
        """Twice."""
        return 2 * self.slope

    def empty(self):
        """Only this."""


@pytest.fixture
def restore():
    threads = torch.get_num_threads()
    with matplotlib.rc_context():
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_setup_sets_threads_and_style_silently(threads, restore, capsys):
    assert setup(threads) is None
    assert torch.get_num_threads() == threads
    assert matplotlib.rcParams["figure.dpi"] == 80
    assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][:2] == ["#0072B2", "#D55E00"]
    assert capsys.readouterr() == ("", "")


def test_setup_twice_is_fine_and_bad_threads_are_named(restore):
    setup()
    setup()
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        setup(threads=0)


def test_scale(monkeypatch):
    monkeypatch.delenv("TINYDIFF_SCALE", raising=False)
    assert scale() == "laptop"
    monkeypatch.setenv("TINYDIFF_SCALE", "full")
    assert scale() == "full"
    monkeypatch.setenv("TINYDIFF_SCALE", "huge")
    with pytest.raises(ValueError, match="TINYDIFF_SCALE must be one of laptop, full, got 'huge'"):
        scale()


def test_source_leaves_out_docstring_and_decorators():
    assert source(posterior_mean) == (
        "def posterior_mean(x, alpha):\n    # the reason\n    y = alpha * x\n    return y  # DDPM eq. 7"
    )


def test_source_can_keep_both():
    whole = source(posterior_mean, docstring=True, decorators=True)
    assert whole.startswith('@twice\ndef posterior_mean(x, alpha):\n    """First line.') and "eq. 7" in whole


def test_source_can_keep_either():
    assert source(posterior_mean, decorators=True).startswith("@twice\ndef posterior_mean(x, alpha):\n    # the")
    assert source(posterior_mean, docstring=True).startswith('def posterior_mean(x, alpha):\n    """First line.')


def test_source_of_a_class_keeps_what_its_methods_need():
    fields = "class Line:\n    slope: float = 2.0\n\n"
    first = "    @property\n    def double(self):\n        return 2 * self.slope\n\n"
    second = '    def empty(self):\n        """Only this."""'
    assert source(Line) == fields + first + second


def test_source_of_a_method_is_not_indented():
    assert source(Line.double.fget).startswith("def double(self):\n    return")


def test_source_shown_still_runs():
    space = {}
    exec(source(posterior_mean), space)
    assert 2 * space["posterior_mean"](3.0, 0.5) == posterior_mean(3.0, 0.5)


def test_every_public_function_of_metrics_has_a_source_that_runs():
    import tinydiff.metrics as module

    for name in ("energy_distance", "sliced_wasserstein", "memorisation", "floor"):
        code = source(getattr(module, name))
        assert code.startswith(f"def {name}(") and '"""' not in code
        compile(code, name, "exec")


@pytest.mark.parametrize("thing", [len, 3, lambda x: x], ids=["builtin", "number", "lambda"])
def test_no_source_is_a_clear_error(thing):
    with pytest.raises(ValueError, match="fn must be"):
        source(thing)


def test_show_source_prints_a_code_block_outside_ipython(capsys):
    assert show_source(posterior_mean) is None
    out = capsys.readouterr().out
    assert out.startswith("```python\ndef posterior_mean") and out.endswith("eq. 7\n```\n")


def test_show_source_displays_markdown_in_a_notebook(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "_in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    show_source(posterior_mean)
    assert shown[0].data.startswith("```python\ndef posterior_mean")


def test_progress_passes_values_through_and_stays_on_stderr(capsys):
    bar = progress(iter("abc"), desc="train", total=3)
    seen = []
    for item in bar:
        seen.append(item)
        bar.set_postfix(loss=0.5)
    out, err = capsys.readouterr()
    assert seen == list("abc") and out == ""
    assert "train" in err and "3/3" in err and "loss=0.5" in err


def test_importing_the_helpers_is_light():
    modules = "datasets metrics plotting notebook progress".split()
    code = "import sys" + "".join(f", tinydiff.{name}" for name in modules)
    code += "; print([m for m in ('matplotlib', 'sklearn', 'IPython') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_setup_seeds_torch():
    with torch.random.fork_rng():
        notebook.setup(seed=3)
        first = torch.rand(2)
        notebook.setup(seed=3)
        assert torch.equal(torch.rand(2), first)
        notebook.setup(seed=4)
        assert not torch.equal(torch.rand(2), first)
