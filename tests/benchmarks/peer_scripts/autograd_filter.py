"""autograd_filter.py PAIRS MODEL KEPT: exact gradients, one pair at a time, all numbers kept."""

import sys

import numpy as np
from keep_agreeing import read_pairs, write_agreeing
from pair_gradients import pair_gradients

data, model, kept = sys.argv[1:]
lines, pairs = read_pairs(data, model)
rows = np.stack([gradient.numpy() for gradient in pair_gradients(model, pairs)])
np.save("gradients.npy", rows)
write_agreeing(kept, lines, rows)
