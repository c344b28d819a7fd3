"""Problems of a dataset, each with its place, collected so that they can be reported together."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from mlcls.errors import DatasetError

# Number of errors that the text of an exception lists; it counts the others.
_LISTED_ERRORS: Final = 5
# Number of problems that are printed.
_PRINTED_PROBLEMS: Final = 20


class Place(NamedTuple):
    """A file of a dataset, by its path with slashes, and a line, from 1, or an item in it, like `image 17`."""

    file: str
    line: int | None = None
    item: str | None = None

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return where if self.item is None else f"{where}: {self.item}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem, an `error` if the dataset is rejected for it, else a `warning`; `kind` names it for programs."""

    severity: str
    kind: str
    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with `line` and `item` if they are known."""
        place = {name: value for name, value in self.place._asdict().items() if value is not None}
        return {"severity": self.severity, "kind": self.kind, **place, "message": self.message}


class ProblemLog:
    """The problems found so far, in order: errors, for which the dataset is rejected, and warnings for its owner.

    With `strict`, the dataset is rejected for defects too.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, kind: str, place: Place, message: str) -> None:
        """Add a problem that the dataset is rejected for."""
        self.errors.append(Problem("error", kind, place, message))

    def warning(self, kind: str, place: Place, message: str) -> None:
        """Add a problem that its owner should know about."""
        self.warnings.append(Problem("warning", kind, place, message))

    def defect(self, kind: str, place: Place, message: str) -> None:
        """Add a problem of a dataset that can be trained on: a warning, or an error if strict."""
        (self.error if self._strict else self.warning)(kind, place, message)

    def print(self, where_all: str) -> None:
        """Print the first problems to standard error, and, if there are more, their number and where they all are."""
        problems = self.errors + self.warnings
        for problem in problems[:_PRINTED_PROBLEMS]:
            print(f"{problem.severity}: {problem}", file=sys.stderr)
        if len(problems) > _PRINTED_PROBLEMS:
            print(f"... and {len(problems) - _PRINTED_PROBLEMS} more, all in {where_all}", file=sys.stderr)

    def raise_errors(self, path: Path) -> None:
        """Raise the errors of one file, if any, with the first of them in full.

        Raises:
            DatasetError: There are errors.
        """
        if self.errors:
            shown = self.errors[:_LISTED_ERRORS]
            texts = [f"line {each.place.line}: {each.message}" if each.place.line else each.message for each in shown]
            more = f"; and {len(self.errors) - len(shown)} more" if len(self.errors) > len(shown) else ""
            raise DatasetError(f"{path}: {'; '.join(texts)}{more}.")
