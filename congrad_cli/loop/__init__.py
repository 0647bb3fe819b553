"""``congrad loop``: rounds of generating, judging, filtering and training, resumable."""
