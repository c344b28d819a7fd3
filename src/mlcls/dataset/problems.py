"""Problems of a dataset, each with its place, collected so that they can be reported together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from mlcls.errors import DatasetError

# Number of errors that the text of an exception lists; it counts the others.
_LISTED_ERRORS: Final = 5


class Place(NamedTuple):
    """A place in a dataset.

    Attributes:
        file: Path relative to the dataset's folder, with slashes.
        line: Number of the line, from 1.
        item: Item in a file without lines, like `image 17`.
    """

    file: str
    line: int | None = None
    item: str | None = None

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return where if self.item is None else f"{where}: {self.item}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        kind: Short name of this kind of problem, for programs.
        message: What was expected and what came.
        place: Where it is.
        is_error: Whether the dataset is rejected for it; otherwise it is a warning.
    """

    kind: str
    message: str
    place: Place
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with `line` and `item` if they are known."""
        place = {name: value for name, value in self.place._asdict().items() if value is not None}
        severity = "error" if self.is_error else "warning"
        return {"severity": severity, "kind": self.kind, **place, "message": self.message}


class ProblemLog:
    """The problems found so far, in order."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def __iter__(self) -> Iterator[Problem]:
        """Yield the errors, then the warnings."""
        yield from self.errors
        yield from self.warnings

    @property
    def errors(self) -> list[Problem]:
        """Problems that the dataset is rejected for."""
        return [problem for problem in self._problems if problem.is_error]

    @property
    def warnings(self) -> list[Problem]:
        """Problems that its owner should know about."""
        return [problem for problem in self._problems if not problem.is_error]

    def error(self, kind: str, place: Place, message: str) -> None:
        """Add a problem that the dataset is rejected for."""
        self._problems.append(Problem(kind, message, place))

    def warning(self, kind: str, place: Place, message: str) -> None:
        """Add a problem that its owner should know about."""
        self._problems.append(Problem(kind, message, place, is_error=False))

    def raise_errors(self, path: Path) -> None:
        """Raise the errors of one file, if any, with the first of them in full.

        Raises:
            DatasetError: There are errors.
        """
        texts = [
            error.message if error.place.line is None else f"line {error.place.line}: {error.message}"
            for error in self.errors
        ]
        more = f"; and {len(texts) - _LISTED_ERRORS} more" if len(texts) > _LISTED_ERRORS else ""
        if texts:
            raise DatasetError(f"{path}: {'; '.join(texts[:_LISTED_ERRORS])}{more}.")
