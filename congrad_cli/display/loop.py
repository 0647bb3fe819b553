"""What ``loop`` shows: a round's numbers, and what a run would do."""

from typing import TYPE_CHECKING

from congrad_cli.console import say, table

if TYPE_CHECKING:
    from congrad_cli.loop.metrics import RoundMetrics
    from congrad_cli.loop.run import Preview


def show_round(metrics: "RoundMetrics") -> None:
    """Per language: prompts, pairs, kept; then what the round's model is worth."""
    made, kept = (metrics.stages.get(name, {}).get("languages", {}) for name in ("pairs", "filter"))
    prompts = metrics.stages.get("prompts", {}).get("languages", {})
    rows = []
    for name in prompts:
        found = kept.get(name, {"kept": 0, "median_score": None})
        score = found["median_score"]
        rows.append((name, f"{prompts[name]:,}", f"{made.get(name, 0):,}",
                     f"{found['kept']:,}" if kept else "-",
                     "-" if score is None else f"{score:+.3f}"))
    if rows:
        table(f"round {metrics.number}", ("language", "prompts", "pairs", "kept", "median score"),
              rows)
    if metrics.measured:
        measures = metrics.measures()
        names = sorted({name for values in measures.values() for name in values})
        title = f"round {metrics.number}" if metrics.number else "the initial model"
        table(f"{title}, on held-out data", ("language", *names), [
            (language, *(f"{values[name]:.3f}" if name in values else "-" for name in names))
            for language, values in measures.items()])


def show_preview(preview: "Preview") -> None:
    """The steps of a run and what is there of them; prompts; models."""
    table("dry run", ("step", "state"), preview.steps)
    table("prompts of the next round", ("language", "prompts"),
          [(name, f"{count:,}") for name, count in preview.prompts.items()])
    for what, model in preview.models.items():
        say(what, model)
    if preview.translated:
        say("translated", f"into {', '.join(preview.translated)}")
