"""What the scripts beside this one need around their gradients: tokens, and who is kept.

The rule is that of ``congrad consensus --method mean | congrad filter``: the unit gradients of a
language are averaged, the averages of all languages as well, and a pair is kept where its own
gradient agrees with the result. The pair itself is left out of its language's average.
"""

import json
from os.path import commonprefix
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer


def read_pairs(path, model):
    """The file's lines, and the token ids of prompt, chosen and rejected of each."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = Path(path).read_bytes().splitlines(keepends=True)
    pairs = []
    for line in lines:
        row = json.loads(line)
        texts = [row["prompt"], *(row["prompt"] + row[side] + tokenizer.eos_token
                                  for side in ("chosen", "rejected"))]
        prompt, chosen, rejected = (tokenizer(text)["input_ids"] for text in texts)
        start = len(commonprefix([prompt, chosen, rejected]))  # noqa: RUF071
        pairs.append((prompt[:start], chosen[start:], rejected[start:]))
    return lines, pairs


def write_agreeing(path, lines, rows):
    """Keep the lines whose gradient, of ``rows`` [n, numbers], agrees with the languages' mean."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    languages = [json.loads(line)["language"] for line in lines]
    names, label = np.unique(languages, return_inverse=True)
    mean = np.stack([unit[label == one].mean(0) for one in range(len(names))])
    direction, size = mean.mean(0), np.bincount(label)
    with Path(path).open("wb") as kept:
        for line, row, own in zip(lines, unit, label, strict=True):
            without = direction + (mean[own] - row) / (size[own] - 1) / len(names)
            if row @ without >= 0:
                kept.write(line)
