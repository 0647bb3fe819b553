"""``congrad sketch --dry-run``: what a sketch of this data would meet, without the weights."""

from dataclasses import dataclass
from typing import Any

from congrad_cli import checkpoint
from congrad_cli.errors import InputError
from congrad_cli.model_source import find_model
from congrad_cli.progress import Progress
from congrad_cli.records.damage import BROKEN, NO_PAIRS, DamageLimit
from congrad_cli.settings import SketchSettings
from congrad_cli.sketch.index import DataIndex, check_settings, optional_columns, tell_rejects
from congrad_cli.sketch.token_report import TokenReport, measure, store_bytes

SCHEMA = "congrad.dry-run/1"


@dataclass(frozen=True)
class DryRun:
    """What was found: in the files, in the tokens, and what a sketch would say to it."""

    index: DataIndex
    tokens: TokenReport
    store_bytes: int
    refusal: str | None  # why a sketch with these settings would stop; None where it would not

    @property
    def left_out(self) -> dict[str, int]:
        """How many records would get no sketch, by code, most frequent first."""
        return dict((self.index.damage.codes + self.tokens.skipped).most_common())

    def to_json(self) -> dict[str, Any]:
        """One object; new keys may come, these stay."""
        return {
            "schema": SCHEMA,
            "files": [
                {"name": item.name, "records": item.records, "shape": item.shape}
                for item in self.index.stored.sources
            ],
            "records": self.index.rows,
            "left_out": self.left_out,
            "store_bytes": self.store_bytes,
            "refusal": self.refusal,
            **self.tokens.to_json(),
        }


def dry_run(index: DataIndex, settings: SketchSettings, progress: Progress) -> DryRun:
    """Tokenise the indexed data. Nothing is written but ``--rejects``.

    ``index`` has all bad records, whatever the settings say of them: what they would have done is
    the report's ``refusal``.
    """
    check_settings(settings)
    source = find_model(settings.model, settings.revision, settings.adapter)
    tokenizer = checkpoint.load_tokenizer(source, settings.chat_template)
    if index.conversation:
        checkpoint.require_template(tokenizer, source, index.conversation)
    tokens = measure(
        index.records(), index.groups, index.group, tokenizer, settings, progress
    )
    tell_rejects(settings, index, [*index.rejected, *tokens.entries])
    return DryRun(
        index=index,
        tokens=tokens,
        store_bytes=store_bytes(
            settings, tokens.overall.pairs, optional_columns(settings, index)
        ),
        refusal=_refusal(index, settings, tokens),
    )


def _refusal(index: DataIndex, settings: SketchSettings, tokens: TokenReport) -> str | None:
    """The first thing that would stop a sketch."""
    limit = DamageLimit(stop=False, most=settings.max_bad)
    limit.codes.update(index.damage.codes)
    first = next((entry for entry in index.rejected if entry["code"] not in NO_PAIRS), None)
    if settings.bad_records == "stop" and first is not None:
        return f"{first['source']}:{first['line']}: {first['message']}"
    try:
        limit.check(index.rows)
        if tokens.stop is None:
            limit.codes.update(
                {code: count for code, count in tokens.skipped.items() if code in BROKEN})
            limit.check(index.rows)
    except InputError as error:
        return error.message
    return tokens.stop
