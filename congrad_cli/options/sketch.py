"""Options of ``congrad sketch``."""

from pathlib import Path
from typing import Annotated

import typer

from congrad_cli.options.choice import choice

SketchData = Annotated[
    list[str] | None,
    typer.Argument(help="Files of preference pairs (JSONL, JSON, gz, zst, parquet), globs, a "
                        "folder saved by datasets, or - for stdin."),
]
Model = Annotated[
    str,
    typer.Option("--model", "-m", envvar="CONGRAD_MODEL",
                 help="A folder, a .gguf file, or a name on the Hugging Face hub."),
]
Store = Annotated[
    Path | None,
    typer.Option("--store", "-s", help="Where the gradients go; else x.congrad beside x.jsonl."),
]
Revision = Annotated[
    str | None, typer.Option(help="A branch, tag or commit of a model on the hub.")
]
ChatTemplate = Annotated[
    str | None,
    choice("FILE|plain",
           help="Use this Jinja chat template instead of the tokenizer's own."),
]
MaxLength = Annotated[
    int, typer.Option(min=2, help="Cut prompt + answer at this many tokens, as TRL does.")
]
RowSize = Annotated[
    str | None,
    choice("4k|8k|16k",
           help="Bytes kept of each gradient, in the numbers and code that are best; 16k."),
]
Dim = Annotated[
    int | None, typer.Option(min=1, max=1 << 24, help="Numbers kept of each gradient; 32768.")
]
Width = Annotated[
    str,
    choice("auto|N",
           help="Random directions that stand for a layer's input side; auto: by the model."),
]
Leading = Annotated[
    int, typer.Option(min=0, help="Leading directions of each layer's inputs kept exactly.")
]
SketchSeed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random projection.")
]
StoreDtype = Annotated[
    str | None,
    choice("float16|int8|int4|1bit",
           help="How numbers are stored. Products of rows: float16, int8 unbiased; int4, "
                "1bit to first order in the cosine (1bit: 4.7 % high at 0.5)."),
]
Reference = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Add this model's log-probabilities, for margins."),
]
TokenWeighting = Annotated[
    str,
    choice("sum|mean|ld:A",
           help="How tokens add up to an answer: sum (DPO), mean (IPO), LD-DPO's."),
]
Layers = Annotated[
    str,
    choice("blocks|all|GLOBS",
           help="Weights to sketch: every linear of the blocks, all, or names such as "
                "'*.mlp.*'; !NAME leaves out; with commas between."),
]
Adapter = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="A PEFT adapter on the model; its weights are sketched."),
]
Dtype = Annotated[
    str,
    choice("auto|float32|bfloat16|float16",
           help="Precision; auto: the checkpoint's on CUDA, float32 on the CPU."),
]
SharePrompt = Annotated[
    bool,
    typer.Option("--share-prompt/--no-share-prompt",
                 help="Run each prompt once for its two answers (checked at start)."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
DeviceMap = Annotated[
    str | None,
    typer.Option(metavar="auto", help="Spread a model that is larger than one GPU over all."),
]
BatchTokens = Annotated[
    str,
    choice("auto|N",
           help="Tokens per batch; auto: what the device holds. Halved if memory runs out."),
]
GradientCheckpointing = Annotated[
    bool,
    typer.Option("--gradient-checkpointing",
                 help="Keep less of long pairs in memory and compute it again: a third slower."),
]
BadRecords = Annotated[
    str,
    choice("stop|skip",
           help="Records that are no usable pair, and pairs whose gradient is zero or not "
                "finite: stop, or leave them out and count them."),
]
Shard = Annotated[
    str | None,
    typer.Option(metavar="I/N",
                 help="Do part I (from 0) of N; others do the rest, now or later. With torchrun "
                      "it goes without saying."),
]
SketchThreads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; without it, torch decides.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the store that is there.")
]
PromptField = Annotated[
    str | None, typer.Option(help="Field with the prompt, if the data's shape has another name.")
]
ChosenField = Annotated[str | None, typer.Option(help="Field with the better answer.")]
RejectedField = Annotated[str | None, typer.Option(help="Field with the worse answer.")]
IdField = Annotated[str, typer.Option(help="Field with the pair's id, if any.")]
ShapeName = Annotated[
    str | None,
    typer.Option("--shape", metavar="NAME",
                 help="The shape of all records, a name of docs/data.md; else the data tells."),
]
GroupBy = Annotated[
    str,
    typer.Option(metavar="FIELD[,FIELD]",
                 help="What makes a group: language, or any fields, whose values are joined."),
]
LanguageField = Annotated[
    str | None, typer.Option(help="Field with the language; else language, lang or locale.")
]
Language = Annotated[
    str | None, typer.Option(help="The language of every pair, whatever its fields say.")
]
Languages = Annotated[
    str | None,
    typer.Option(metavar="CODE,CODE...", help="The only languages allowed (and detected)."),
]
DetectLanguage = Annotated[
    bool,
    typer.Option("--detect-language",
                 help="Tell the language from the text where no field and no file name does."),
]
MinConfidence = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Pairs whose language is less sure are bad records."),
]
MaxBad = Annotated[
    str | None,
    typer.Option(metavar="SHARE|N",
                 help="With --bad-records skip: stop where more records than this are bad."),
]
Rejects = Annotated[
    Path | None,
    typer.Option(help="Write what was left out here, byte for byte, with line and reason."),
]
Overlong = Annotated[
    str,
    choice("truncate|skip|stop",
           help="Pairs longer than --max-length: cut as TRL does, leave out, or stop."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run",
                 help="Read and tokenise everything, load no weights, write no store; say what is "
                      "there and what would be left out."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="With --dry-run: the result as one JSON object on stdout.")
]
