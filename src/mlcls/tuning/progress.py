"""The progress of a search on a terminal: how much of its time is gone, and what it is measuring."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def show_progress(budget_s: float) -> Iterator[Callable[[str], None]]:
    """Shows a bar of the time; none where tqdm is not installed, as in the image that serves.

    Args:
        budget_s: How long the search may take.

    Yields:
        What is to be told of each step.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda _text: None
        return
    began = time.monotonic()
    form = "{desc} {percentage:3.0f}%|{bar}| {remaining} left {postfix}"
    with tqdm(total=budget_s, desc="tune", bar_format=form, leave=False, disable=None) as bar:

        def tell(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.n = min(time.monotonic() - began, budget_s)
            bar.refresh()

        yield tell
