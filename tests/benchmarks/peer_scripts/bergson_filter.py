"""bergson_filter.py PAIRS MODEL KEPT: an index of two rows a pair, 16 x 16 numbers a layer."""

import sys

from bergson import DataConfig, IndexConfig, PreprocessConfig, load_gradients
from bergson.build import build
from datasets import Dataset
from keep_agreeing import read_pairs, write_agreeing

data, model, kept = sys.argv[1:]
lines, pairs = read_pairs(data, model)
Dataset.from_list([
    {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer, "advantage": sign}
    for prompt, chosen, rejected in pairs for answer, sign in ((chosen, 1.0), (rejected, -1.0))
]).save_to_disk("rows")
rows = DataConfig(dataset="rows", advantage_column="advantage")
config = IndexConfig("index", model=model, data=rows, projection_dim=16, token_batch_size=1024)
build(config, PreprocessConfig())
write_agreeing(kept, lines, load_gradients("index").reshape(len(lines), 2, -1).sum(1))
