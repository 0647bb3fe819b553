"""References for scores and their errors that know nothing of groups: one table of products.

P [r, N, N] holds the products of all rows by sub-sketch, with every row's true square on the
diagonal. Any vector of the method is a combination of rows, so P is all that is needed.
"""

import numpy as np

from congrad_cli.weights import Members


def members_of(store, scale, share):
    """The store's pairs in the data's groups."""
    return Members(store.column("group"), np.asarray(scale, float), np.asarray(share, float))


def product_table(store):
    """P of a store's decoded rows."""
    codec = store.header.codec
    rows = np.concatenate([block.direction for block in store.blocks()]).astype(np.float64)
    blocks = rows.reshape(len(rows), codec.width, -1).swapaxes(0, 1)
    table = blocks @ blocks.swapaxes(1, 2)
    if not codec.exact:  # rows are units; decoding keeps the shares of their blocks
        everyone = np.arange(len(rows))
        squares = table[:, everyone, everyone]
        table[:, everyone, everyone] = squares / squares.sum(0)
    return table


def without(gone, scale, share, label, coefficients):
    """d without the rows ``gone`` [N] as a combination of rows, [N]: their groups are averaged
    again over those that are left."""
    result = np.zeros(len(scale))
    for group, coefficient in enumerate(coefficients):
        others = (label == group) & ~gone
        left = 1 - share[(label == group) & gone].sum()
        if left > 1e-12:  # a group that has no other row is left out
            result[others] = coefficient * share[others] / left * scale[others]
    return result


def table_scores(table, scale, share, label, coefficients, leave_one_out=True, item=None):
    """cos(g_i, d_-i) of all rows from their products [N, N]; nan where one of them is zero.

    Rows of one ``item`` [N] leave each other out."""
    result = np.full(len(scale), np.nan)
    item = np.arange(len(scale)) if item is None else item
    for i in range(len(scale)):
        d = (without(item == item[i], scale, share, label, coefficients) if leave_one_out
             else np.asarray(coefficients)[label] * share * scale)
        square = table[i, i] * (d @ table @ d)
        if square > 0:
            result[i] = np.sign(scale[i] or 1) * (table[i] @ d) / np.sqrt(square)
    return result


def table_errors(table, *case, **options):
    """Their jackknife errors, by doing everything again without each sub-sketch."""
    count = len(table)
    again = np.array([table_scores(table.sum(0) - part, *case, **options) for part in table])
    return np.sqrt((count - 1) * again.var(0))
