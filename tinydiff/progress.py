"""A progress bar on stderr, which notebooks neither store nor compare."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(iterable: Iterable, desc: str = "", total: int | None = None, show: bool = True) -> tqdm:
    """`for step in (bar := progress(steps)): bar.set_postfix(loss=...)`.

    Plain tqdm, not the widget, so that it works in any front end. It is redrawn at most twice a second.
    `total` is needed where the iterable has no length (a generator) and a percentage is wanted. `show=False`: no bar,
    as in all processes but one.
    """
    return tqdm(iterable, desc=desc or None, total=total, mininterval=0.5, file=sys.stderr, disable=not show)
