"""What a notebook needs besides the mathematics: set-up, scale, and the source of a function on the page."""

import ast
import inspect
import os
import textwrap

import torch

# Okabe and Ito's colours, which stay apart for colour-blind readers: one for each thing, everywhere
COLORS = {"data": "#0072B2", "model": "#D55E00", "truth": "#999999", "noise": "#CC79A7"}
OTHERS = ("#009E73", "#56B4E9", "#E69F00", "#CC79A7", "#000000")  # for anything else, in this order
SCALES = ("laptop", "full")


def setup(threads: int = 1, seed: int = 0) -> None:
    """Fix what should look and run the same in every notebook: torch's threads and seed, and matplotlib's style.

    `threads`: 1 for points in the plane, where more cost more than they give (up to 30 times on a busy
    machine); 2 or more for images. Raises ValueError if threads < 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    import matplotlib

    matplotlib.rcParams.update(
        {
            "figure.figsize": (5.0, 3.4),
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",  # comes with matplotlib, so figures have the same size everywhere
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": matplotlib.cycler(color=[COLORS["data"], COLORS["model"], *OTHERS]),
            "legend.frameon": False,
            "image.cmap": "gray",
        }
    )
    if _in_notebook():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("png")  # SVG holds the time of its creation


def scale() -> str:
    """'laptop' (the default) or 'full': the environment variable TINYDIFF_SCALE, read here and nowhere else.

    Raises ValueError for any other value.
    """
    value = os.environ.get("TINYDIFF_SCALE", SCALES[0])
    if value not in SCALES:
        raise ValueError(f"TINYDIFF_SCALE must be one of {', '.join(SCALES)}, got {value!r}")
    return value


def show_source(fn, docstring: bool = False, decorators: bool = False) -> None:
    """Show the source of a function or class, as short as it is: without docstrings and outer decorators.

    A Markdown block in a notebook, plain text elsewhere. Raises ValueError for what has no Python source.
    """
    code = f"```python\n{source(fn, docstring, decorators)}\n```"
    if _in_notebook():
        from IPython.display import Markdown, display

        display(Markdown(code))
    else:
        print(code)


def source(fn, docstring: bool = False, decorators: bool = False) -> str:
    """The text that `show_source` shows. Raises ValueError for what has no Python source."""
    try:
        code = textwrap.dedent(inspect.getsource(fn))
        outer = ast.parse(code).body[0]
    except (TypeError, OSError, SyntaxError) as error:
        raise ValueError(f"fn must be a function or class with Python source, got {fn!r}") from error
    if getattr(outer, "name", None) != fn.__name__:  # a lambda: its source is what it stands in
        raise ValueError(f"fn must be defined by def or class, got {fn!r}")
    lines = code.splitlines()
    dropped = set() if decorators else set(range(1, outer.lineno))
    for node in [] if docstring else ast.walk(outer):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) and len(node.body) > 1:
            text = node.body[0]
            last = text.end_lineno
            while not lines[last].strip():  # the blank lines that set the docstring off
                last += 1
            dropped |= set(range(text.lineno, last + 1))
    return "\n".join(line for number, line in enumerate(lines, start=1) if number not in dropped).rstrip()


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:  # a plain installation, without the notebook extra
        return False
    return get_ipython() is not None
