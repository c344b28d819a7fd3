"""The progress bar of `mlcls-client predict`, drawn by tqdm (extra `progress`) on standard error."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from mlcls_client.errors import InvalidRequestError


class ProgressBar:
    """A bar of the images that are done; nothing at all where it is not wanted. A context manager."""

    def __init__(self, wanted: bool | None, count: Callable[[], int | None]) -> None:
        """Prepare a bar.

        Args:
            wanted: True, False, or None for a bar where standard error is a terminal and tqdm is installed.
            count: Tells how many images there are, None where that is not known; called only for a bar.

        Raises:
            InvalidRequestError: A bar is wanted, and tqdm is not installed.
        """
        self._bar: Any = None
        if wanted is None and not sys.stderr.isatty():
            wanted = False
        if wanted is False:
            return
        try:
            self._tqdm: Any = importlib.import_module("tqdm").tqdm
        except ModuleNotFoundError as error:
            if wanted:
                raise InvalidRequestError(
                    "a progress bar needs tqdm, which is not installed: pip install 'mlcls-client[progress]'"
                ) from error
            return
        self._bar = self._tqdm(total=count(), unit=" images", file=sys.stderr, dynamic_ncols=True)

    def advance(self) -> None:
        """Note one image more."""
        if self._bar is not None:
            self._bar.update()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Take the bar off the terminal while something else is written there."""
        if self._bar is None:
            yield
            return
        with self._tqdm.external_write_mode(file=sys.stderr):
            yield

    def __enter__(self) -> "ProgressBar":
        """Return the bar itself."""
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
