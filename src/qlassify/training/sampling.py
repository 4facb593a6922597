"""Balanced sampling: every class is drawn equally often, whatever its share of the rows.

Each class has an endless sequence of its own: one permutation of its rows after another, so that no row comes again
before all rows of its class have come. The draws of a run go to the classes in turn, and an epoch is as many draws as
there are rows. A rare class's rows come several times in an epoch; of a frequent class's rows each epoch shows a part,
and later epochs show the others.

Where a class stands in its sequence when an epoch begins is a formula in the epoch's number, and each permutation is a
function of seed, class and how often the class has been gone through. So an epoch is known without those before it,
which resuming and planning need. Drawing rows with weights and replacement, as torch's ``WeightedRandomSampler`` does,
was the alternative: its classes are equally frequent only on average, and of a class that is drawn as often as it has
rows, a third (1/e) would by chance not come at all while others come twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.seeding import numpy_generator

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BalancedDraws:
    """The rows of each epoch when classes are drawn equally often.

    Attributes:
        rows_of_class: for each class that has rows, those rows, ascending.
        seed: the run's.
    """

    rows_of_class: tuple[IntArray, ...]
    seed: int

    @classmethod
    def of(cls, classes: npt.NDArray[Any], seed: int) -> BalancedDraws:
        """From the (N,) class numbers of the training rows; classes without rows are not drawn."""
        return cls(tuple(np.flatnonzero(classes == number).astype(np.int64) for number in np.unique(classes)), seed)

    @property
    def num_rows(self) -> int:
        """Rows of all classes together, and draws of an epoch."""
        return sum(len(rows) for rows in self.rows_of_class)

    def rows_of_epoch(self, epoch: int) -> IntArray:
        """The (N,) rows of an epoch (0 is the first), in the order in which they are visited."""
        before, after = self._draws(epoch), self._draws(epoch + 1)
        drawn = [self._stretch(which, before[which], after[which]) for which in range(len(self.rows_of_class))]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *drawn])
        return rows[numpy_generator(self.seed, "shuffle", epoch).permutation(len(rows))]

    def _draws(self, epochs: int) -> list[int]:
        """How often each class has been drawn after so many epochs: draw number i goes to class i mod C."""
        total, classes = epochs * self.num_rows, len(self.rows_of_class)
        return [(total - which + classes - 1) // classes for which in range(classes)]

    def _stretch(self, which: int, start: int, stop: int) -> IntArray:
        """Places ``start`` to ``stop`` of a class's sequence."""
        rows = self.rows_of_class[which]
        first = start // len(rows)
        last = max(first + 1, -(-stop // len(rows)))
        cycles = [
            rows[numpy_generator(self.seed, "balanced", which, cycle).permutation(len(rows))]
            for cycle in range(first, last)
        ]
        return np.concatenate(cycles)[start - first * len(rows) : stop - first * len(rows)]
