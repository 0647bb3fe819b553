"""dense_filter.py PAIRS MODEL KEPT: 8,192 numbers of a dense projection, as LESS keeps them."""

import sys

import numpy as np
import torch
from keep_agreeing import read_pairs, write_agreeing
from pair_gradients import pair_gradients
from trak.projectors import BasicProjector

TOGETHER = 64  # the projection is drawn again for each call

data, model, kept = sys.argv[1:]
lines, pairs = read_pairs(data, model)
gradients = list(pair_gradients(model, pairs))
projector = BasicProjector(len(gradients[0]), 8192, 0, "normal", "cpu")
rows = np.concatenate([
    projector.project(torch.stack(gradients[at : at + TOGETHER]), model_id=0).numpy()
    for at in range(0, len(gradients), TOGETHER)
])
np.save("gradients.npy", rows.astype(np.float16))
write_agreeing(kept, lines, rows)
