"""What options and arguments mean: their values checked and turned into what commands take."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from congrad_cli.errors import StoreError, UsageError
from congrad_cli.records.files import find_files, store_name
from congrad_cli.settings import (
    LENGTHLESS,
    LOSSES,
    METHODS,
    MOST_CLUSTERS,
    ROW_SIZES,
    STORE_DTYPES,
    ConsensusSettings,
    RecordSettings,
)


def check_loss(loss: str | None, length_penalty: float | None) -> None:
    if loss is not None:
        one_of("--loss", loss, LOSSES)
    if length_penalty is not None and not math.isfinite(length_penalty):
        raise UsageError(f"--length-penalty {length_penalty}: pass a number such as 0.01.")


def group_weights(value: str, method: str) -> str:
    """``--weights``: uniform, size, or the content of a JSON file, group -> weight, as JSON."""
    if value == "uniform":
        return value
    if method in LENGTHLESS:
        raise UsageError(f"--weights {value} does nothing with --method {method}: its direction "
                         "does not depend on the lengths of group gradients.",
                         "leave it out, or pass another --method")
    if value == "size":
        return value
    try:
        weights = json.loads(Path(value).read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UsageError(f"--weights {value}: {error.strerror}.",
                         "pass uniform, size, or a JSON file: group -> weight") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--weights {value}: not JSON ({error}).") from error
    return weights_as_text(f"--weights {value}", weights)


def weights_as_text(where: str, weights: object) -> str:
    """Weights of groups, checked, as settings have them."""
    if not isinstance(weights, dict) or not all(map(_is_weight, weights.values())):
        raise UsageError(f"{where}: an object of numbers is needed, none negative.",
                         'such as {"de": 2, "sw": 0.5}')
    return json.dumps(weights, sort_keys=True)


def check_used(settings: ConsensusSettings) -> None:
    """Raise :class:`UsageError` for options of ``consensus`` that the others leave without use."""
    plain = ConsensusSettings()
    for name, by, uses in (
        ("orders", "method", ("pcgrad",)), ("trim", "average", ("trimmed",)),
        ("ema_decay", "average", ("ema",)), ("ema_batch", "average", ("ema",)),
        ("length_penalty", "loss", ("lp-dpo",)), ("label_smoothing", "loss", ("robust",)),
        ("normalize_groups", "method", tuple(set(METHODS) - set(LENGTHLESS))),
    ):  # fmt: skip
        value, chosen = getattr(settings, name), getattr(settings, by)
        if value != getattr(plain, name) and chosen not in uses:
            cure = "leave it out" + (f", or pass --{by} {uses[0]}" if len(uses) == 1 else "")
            raise UsageError(f"--{name.replace('_', '-')} {value} does nothing with --{by} "
                             f"{chosen}.", cure)


def groups(value: str) -> str:
    """``--groups``: data, or cluster:K."""
    kind, _, count = value.partition(":")
    if value != "data" and not (kind == "cluster" and count.isascii() and count.isdecimal()):
        raise UsageError(f"--groups {value}: pass data or cluster:K.", "such as cluster:20")
    if count and not (len(count) < 9 and 2 <= int(count) <= MOST_CLUSTERS):
        raise UsageError(f"--groups {value}: K is a number from 2 to {MOST_CLUSTERS}.")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; raises :class:`ValueError` where a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _is_weight(value: object) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)
            and 0 <= value <= sys.float_info.max)


def auto(option: str, value: str) -> int | None:
    """A positive number; None for ``auto``."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"{option} {value}: pass auto or a positive number.")
    return int(value)


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} {value}: pass one of {', '.join(allowed)}.")


def row_size(size: str | None, dim: int | None, store_dtype: str | None) -> tuple[int, str]:
    """The numbers of a row and their code; ``--row-size`` stands for both."""
    if size is not None:
        one_of("--row-size", size, tuple(ROW_SIZES))
        if dim is not None or store_dtype is not None:
            raise UsageError(f"--row-size {size} sets --dim and --store-dtype.", "pass it or them")
    best_dim, best_dtype = ROW_SIZES[size or "16k"]
    one_of("--store-dtype", store_dtype or best_dtype, STORE_DTYPES)
    return best_dim, best_dtype


def shape(name: str | None) -> str | None:
    """A shape's name, or None."""
    if name is not None:
        from congrad_cli.records.shapes import NAMES

        one_of("--shape", name, NAMES)
    return name


def language(label: str | None) -> str | None:
    """A language for all pairs, or None."""
    if label is not None and not label.strip():
        raise UsageError("--language is empty.", 'name one, such as "de"')
    return label


def languages(labels: str | None) -> tuple[str, ...]:
    """The languages allowed, under the names that groups have; none: all."""
    if labels is None:
        return ()
    from congrad_cli.records.languages import canonical

    return tuple(dict.fromkeys(map(canonical, parts("--languages", labels))))


def share(shard: str | None, environment: Mapping[str, str]) -> tuple[int, int, bool]:
    """Rank, number of ranks, and whether rank 0 waits for the others: from --shard or torchrun."""
    if shard is None:
        rank, world = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise UsageError(f"RANK={rank} and WORLD_SIZE={world} (from the environment) make no "
                             "sense.", "unset them, or pass --shard I/N")
        return int(rank), int(world), int(world) > 1
    rank, slash, world = shard.partition("/")
    if not (slash and rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UsageError(f"--shard {shard}: pass I/N with I from 0 to N - 1, such as 0/8.")
    return int(rank), int(world), False


def check_grouping(fields: RecordSettings) -> None:
    """Refuse what is said of languages where no group has one: it would do nothing."""
    if "language" in fields.group_by:
        return
    for option, value in (
        ("--language", fields.language), ("--languages", fields.languages),
        ("--language-field", fields.language_field), ("--detect-language", fields.detect_language),
    ):  # fmt: skip
        if value:
            groups = ",".join(fields.group_by)
            raise UsageError(f"{option} does nothing with --group-by {groups}.",
                             f"leave it out, or pass --group-by language,{groups}")


def data_names(data: Sequence[str] | None) -> list[str]:
    """The data's files as the user names them; ``-`` alone for what is piped in."""
    names = list(data or ["-"])
    if not all(names):
        raise UsageError("'' is no file of pairs.", "name a file, or - for stdin")
    if "-" in names and len(names) > 1:
        raise UsageError("- (stdin) and files together.", "pass one or the other")
    if names == ["-"] and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("no data: name a file, or pipe pairs in.",
                         "congrad sketch data.jsonl --model MODEL")
    return names


def store_for(data: list[str], store: Path | None) -> Path:
    """Where ``sketch`` writes: --store, else x.congrad beside the data's one file x."""
    if store is not None:
        return store.absolute()
    if data == ["-"]:
        raise UsageError("data from stdin needs --store DIR.",
                         "cat data.jsonl | congrad sketch - --model MODEL --store DIR")
    beside = store_name(data)
    if beside is None:
        find_files(data)  # a file that is not there is the more useful thing to hear about
        raise UsageError("several files, or a pattern, need --store DIR.",
                         "congrad sketch a.jsonl b.jsonl --model MODEL --store DIR")
    return beside.absolute()


def parts(option: str, value: str) -> tuple[str, ...]:
    """The parts of a list with commas."""
    result = tuple(part.strip() for part in value.split(","))
    if not all(result):
        raise UsageError(f"{option} {value!r}: names with commas between them are needed.")
    return result


def most_bad(value: str | None, bad_records: str) -> float | None:
    """``--max-bad``: a share below 1 (0.01 or 1%), or a number of records."""
    if value is None:
        return None
    if bad_records != "skip":
        raise UsageError(f"--max-bad {value} needs --bad-records skip.",
                         "without it the first bad record stops the run")
    try:
        number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        number = math.nan
    whole = number == round(number) if math.isfinite(number) else False
    if not (0 <= number < 1 or (whole and not value.endswith("%"))) or number < 0:
        raise UsageError(f"--max-bad {value}: pass a share such as 0.01 or 1%, "
                         "or a number of records such as 50.")
    return number


def store_from(store: Path | None) -> Path:
    """The store a command works on: named, or printed by the command before it in the pipe."""
    if store is not None:
        return store
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no store: name it, or pipe its path in.",
                         "congrad sketch data.jsonl --model MODEL | congrad consensus")
    line = sys.stdin.buffer.readline().rstrip(b"\r\n")
    if not line.strip():
        raise StoreError("no store path arrived on stdin; the command before this one failed.")
    return Path(os.fsdecode(line))  # any bytes that sketch can print


