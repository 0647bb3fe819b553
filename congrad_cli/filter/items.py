"""Which pairs leave each other out of the consensus: copies, and with ``--leave-out-by`` items.

Pairs of one content (equal digests) always do, and pairs whose records have the same value in the
field. What that joins is one item: where two items share a pair, they count as one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import InputError
from congrad_cli.records.columns import look_up
from congrad_cli.records.containers import read_items
from congrad_cli.records.objects import excerpt, kind, names, parse_object
from congrad_cli.records.record import DataFile, Place
from congrad_cli.store import GradientStore
from congrad_cli.store_index import find_digests

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """The items of more than one pair: the places [M] of their pairs, one item after the other,
    and where each begins, [items + 1]. ``single`` [N] are the pairs in none of them."""

    places: Places
    start: Places
    single: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.start) - 1

    def __iter__(self) -> Iterator[Places]:
        for begin, end in zip(self.start[:-1].tolist(), self.start[1:].tolist(), strict=True):
            yield self.places[begin:end]


def make_items(digest: NDArray[np.uint8], value: Places | None = None) -> Items:
    """The items of pairs with these digests [N, 16], and with these values' numbers [N]."""
    count = len(digest)
    first = find_digests(digest, digest)
    label = first if value is None else _joined(value, first)
    _, begin, label = np.unique(label, return_index=True, return_inverse=True)
    label = begin[label]  # an item is called by its first pair, so that items lie as rows do
    size = np.bincount(label, minlength=count)[label]  # [N], of each pair's item
    single = size == 1
    places = np.flatnonzero(~single)
    places = places[np.argsort(label[places], kind="stable")]
    start = np.flatnonzero(np.diff(label[places], prepend=-1, append=count))
    return Items(places, start, single)


def _joined(value: Places, first: Places) -> Places:
    """The values' numbers [N], where copies with different values make these one."""
    parent = np.arange(value.max(initial=-1) + 1)

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = one = int(parent[parent[one]])
        return one

    for copy in np.flatnonzero(first != np.arange(len(first))).tolist():
        parent[root(int(value[copy]))] = root(int(value[first[copy]]))
    roots = np.array([root(one) for one in range(len(parent))], np.int64)
    return roots[value]


def read_values(store: GradientStore, files: Sequence[DataFile], field: str) -> Places:
    """The number of each pair's value in the field, [N]; equal values have one number.

    Values are compared as JSON has them: 1 and 1.0 are one number, "1" and true something else.
    The data is read once for it; whether it is the data that was sketched is seen when its lines
    are written.

    Raises :class:`InputError` for a pair whose record has no such field, or no single value in it.
    """
    place = np.full(store.rows, -1, np.int64)
    place[store.row] = np.arange(len(store))
    result = np.full(len(store), -1, np.int64)
    known: dict[tuple[str, Any], int] = {}
    items = chain.from_iterable(
        ((file.name, item) for item in read_items(file)) for file in files)
    for row, (name, item) in zip(range(store.rows), items, strict=False):
        if place[row] < 0 or item.damage is not None:
            continue
        value = _value(item.raw, field, Place(name, item.line))
        result[place[row]] = known.setdefault((kind(value), value), len(known))
    # Of data with fewer records than were sketched nothing will be written; until then:
    result[result < 0] = len(known) + np.arange(int((result < 0).sum()))
    return result


def _value(raw: bytes, field: str, place: Place) -> Any:
    """The value that tells items apart."""
    fields = parse_object(raw, place)
    value = look_up(fields, field)
    if value is None:
        raise InputError(
            f"{place.source}:{place.line}: no field '{field}', which --leave-out-by names.",
            f"fields here: {names(fields)}",
            "add it to every record, or leave --leave-out-by out")
    if isinstance(value, dict | list):
        raise InputError(
            f"{place.source}:{place.line}: '{field}' is no single value, and --leave-out-by needs "
            "one.", f"saw: {excerpt(value)}", "write a text or a number that names the item")
    return value
