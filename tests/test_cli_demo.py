"""``congrad demo``: the whole method on bundled data, in one command."""

import json
import re


def test_the_demo_shows_what_was_dropped_and_two_pairs(forked_congrad, sample_data):
    done = forked_congrad("demo", "--pairs", 36)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"", "it is for people"
    text = done.stderr.decode()
    first = (sample_data / "preferences.jsonl").read_bytes().splitlines()[:18]
    languages = {json.loads(line)["language"] for line in first}
    assert len(languages) == 18
    for language in languages:
        assert re.search(rf"^ {language} +2 +[012] ", text, re.MULTILINE), text
    kept, dropped = map(int, re.search(r"kept (\d+), dropped (\d+)", text).groups())
    assert kept + dropped == 36
    for title in ("most clearly kept", "most clearly dropped"):
        best = re.search(rf"{title}: (\w\w), score ([+-][\d.]+)\n  prompt: .*\n  chosen: ", text)
        assert best, text
    assert re.search(r"\d+ of \d+ pairs with swapped answers were dropped", text)
