"""Train the tiny multilingual model and its tokenizer from the parallel text.

The model is only good enough for tests and examples: it knows what each language looks like,
so that gradients of different languages differ as they do in a real model, and it is small
enough to live in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from build_preferences import split_paragraph
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
VOCABULARY = 4096
CONTEXT = 1024
ROW = 512
CHAT_SHARE = 0.25
HELD_OUT_SHARE = 0.02
WARM_UP = 0.03
SENTENCE = re.compile(r"[^\s.。!?।][^.。!?।]*")

# Marks (\p{M}) and the joiners U+200C/U+200D stay inside words: without them Hindi and Bengali
# words break at every vowel sign.
WORD = r"[\p{L}\p{M}\u200c\u200d]"
SPLITTER = (
    rf"[^\r\n\p{{L}}\p{{M}}\p{{N}}]?{WORD}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{{ '\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

Corpus = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Split:
    """Paragraphs by language, for training and for the loss report."""

    train: Corpus
    held_out: Corpus


@dataclass(frozen=True, slots=True)
class Stream:
    """One language as two endless token strings, [tokens] each: plain and rendered as chat."""

    plain: Tensor
    chat: Tensor


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a parallel text file, plain or compressed with xz."""
    opener: Callable[..., object] = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:  # type: ignore[attr-defined]
        for line in file:
            yield json.loads(line)


def openings(text: str) -> set[str]:
    """Return what makes two paragraphs near copies here: a sentence that starts the same."""
    return {part[:32].casefold() for part in SENTENCE.findall(text) if len(part) >= 12}


def report_keys(keys: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Choose the keys of the loss report by hash, so that they do not depend on the order."""
    chosen: set[tuple[str, str]] = set()
    for source in {source for source, _ in keys}:
        ranked = sorted(
            (key for key in keys if key[0] == source),
            key=lambda key: hashlib.sha256("\t".join(key).encode()).digest(),
        )
        chosen.update(ranked[: max(3, round(HELD_OUT_SHARE * len(ranked)))])
    return chosen


def split_corpus(rows: list[dict[str, str]], excluded: set[tuple[str, str]]) -> Split:
    """Keep the excluded paragraphs, and near copies of them, out of both halves.

    A paragraph is held out in every language at once: a translation would give it away.
    """
    keys = Counter((row["src"], row["key"]) for row in rows)
    translated = {key for key, languages in keys.items() if languages > 1}
    reported = report_keys(translated - excluded)
    unseen = excluded | reported
    hidden: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if (row["src"], row["key"]) in unseen:
            hidden[row["lang"]] |= openings(row["text"])
    split = Split(defaultdict(list), defaultdict(list))
    for row in rows:
        key = (row["src"], row["key"])
        if key in reported:
            split.held_out[row["lang"]].append(row["text"])
        elif key not in excluded and hidden[row["lang"]].isdisjoint(openings(row["text"])):
            split.train[row["lang"]].append(row["text"])
    return split


def balanced_sample(corpus: Corpus, smoothing: float, rng: random.Random) -> Iterator[str]:
    """Yield paragraphs so that a language's share grows with its size to the power smoothing."""
    sizes = {language: sum(map(len, texts)) for language, texts in corpus.items()}
    largest = max(sizes.values())
    for language, texts in corpus.items():
        budget = largest * 0.5 * (sizes[language] / largest) ** smoothing
        for text in rng.sample(texts, len(texts)):
            if budget <= 0:
                break
            budget -= len(text)
            yield text


def train_tokenizer(corpus: Corpus, smoothing: float, seed: int) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer; every text round-trips exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITTER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = balanced_sample(corpus, smoothing, random.Random(seed))
    tokenizer.train_from_iterator(sample, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def as_chat(text: str, language: str) -> str:
    """Render one paragraph as the chat template does: first half asked, second half answered."""
    halves = split_paragraph(text, language)
    if halves is None:
        return f"{USER}\n{text}{END}\n"
    return f"{USER}\n{halves[0]}{END}\n{ASSISTANT}\n{halves[1]}{END}\n"


def token_string(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Tensor:
    """Join documents to one token string, [tokens], repeated to at least one row."""
    tokens: list[int] = []
    for start in range(0, len(documents), 4096):
        batch = tokenizer(documents[start : start + 4096], add_special_tokens=False)
        for ids in batch["input_ids"]:
            tokens.extend(ids)
    tokens *= math.ceil((ROW + 2) / len(tokens))
    return torch.tensor(tokens, dtype=torch.int16)


def build_streams(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, seed: int, device: str
) -> dict[str, Stream]:
    """Tokenize every language in both forms and put the result on the device."""
    streams: dict[str, Stream] = {}
    rng = random.Random(seed)
    for language in sorted(corpus):
        texts = rng.sample(corpus[language], len(corpus[language]))
        streams[language] = Stream(
            token_string(tokenizer, [text + END for text in texts]).to(device),
            token_string(tokenizer, [as_chat(text, language) for text in texts]).to(device),
        )
    return streams


def sample_rows(
    streams: dict[str, Stream], shares: list[float], count: int, generator: torch.Generator
) -> Tensor:
    """Draw rows, [count, ROW + 1]: a language, a form, then a random place in its string."""
    strings = [string for stream in streams.values() for string in (stream.plain, stream.chat)]
    weights = [w for share in shares for w in (share * (1 - CHAT_SHARE), share * CHAT_SHARE)]
    drawn = torch.multinomial(torch.tensor(weights), count, True, generator=generator)
    offsets = torch.arange(ROW + 1)
    rows = []
    for index, number in enumerate(torch.bincount(drawn, minlength=len(strings)).tolist()):
        if number:
            string = strings[index]
            starts = torch.randint(len(string) - ROW - 1, (number, 1), generator=generator)
            rows.append(string[(starts + offsets).to(string.device)])
    return torch.cat(rows).long()


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Create the untrained model."""
    end = tokenizer.convert_tokens_to_ids(END)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    return LlamaForCausalLM(config)


def row_losses(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Return the loss of every token, [rows * ROW], in nats."""
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.is_cuda):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
    )


@torch.no_grad()
def held_out_report(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus
) -> dict[str, dict[str, float]]:
    """Return loss per token and bits per byte of every language.

    Bits per byte also count the end marks, and compare across tokenizers; losses do not.
    """
    device = next(model.parameters()).device
    end = tokenizer.convert_tokens_to_ids(END)
    report: dict[str, dict[str, float]] = {}
    model.eval()
    for language, texts in sorted(corpus.items()):
        ids = tokenizer([text + END for text in texts], add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([end, *(token for document in ids for token in document)])
        chunks = [tokens[i : i + ROW + 1] for i in range(0, len(tokens) - 1, ROW)]
        total = sum(float(row_losses(model, c[None].to(device)).sum()) for c in chunks)
        size = sum(len(text.encode()) for text in texts)
        report[language] = {
            "texts": len(texts),
            "loss": round(total / (len(tokens) - 1), 4),
            "bits_per_byte": round(total / math.log(2) / size, 4),
        }
    model.train()
    return report


def make_optimizer(model: LlamaForCausalLM, lr: float) -> torch.optim.AdamW:
    """Create AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def learning_rate(peak: float, progress: float) -> float:
    """Warm up, then fall on a cosine to zero; progress runs from 0 to 1."""
    if progress < WARM_UP:
        return peak * max(progress, 1e-3) / WARM_UP
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def train(
    model: LlamaForCausalLM, streams: dict[str, Stream], args: argparse.Namespace
) -> dict[str, object]:
    """Train until the time or the number of steps is used up; return the figures of the run."""
    sizes = [len(stream.plain) for stream in streams.values()]
    total_size = sum(size**args.smoothing for size in sizes)
    shares = [size**args.smoothing / total_size for size in sizes]
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = make_optimizer(model, args.lr)
    forward = torch.compile(model) if args.compile else model
    count = max(1, args.tokens_per_step // ROW)
    start, step, progress, smooth = time.monotonic(), 0, 0.0, float("nan")
    curve: list[list[float]] = []
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, progress)
        rows = sample_rows(streams, shares, count, generator).to(args.device)
        loss = row_losses(forward, rows).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 10 == 0 or step == 1:
            value = float(loss.detach())  # waits for the device, so the clock below is honest
            smooth = value if math.isnan(smooth) else 0.7 * smooth + 0.3 * value
        elapsed = time.monotonic() - start
        progress = step / args.steps if args.steps else elapsed / (60 * args.minutes)
        if progress * 20 >= len(curve) + 1:
            curve.append([step, round(elapsed, 1), round(smooth, 4)])
            print(f"step {step:6d}  {elapsed:6.0f} s  train loss {smooth:.4f}", flush=True)
    figures: dict[str, object] = {"steps": step, "tokens": step * count * ROW}
    return figures | {"seconds": round(time.monotonic() - start, 1), "train_loss": curve}


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights in bfloat16, configuration and tokenizer, readable by everyone."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer with a class name that every version knows, and no trace of loading."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("backend", "is_local", "local_files_only"):
        config.pop(name, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="parallel.jsonl or .jsonl.xz")
    parser.add_argument("--held-out", type=Path, help="held_out_keys.txt: source, tab, key")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--tokenizer", type=Path, help="use this tokenizer, do not train one")
    parser.add_argument("--tokenizer-only", action="store_true", help="stop after the tokenizer")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--minutes", type=float, default=3.0, help="training time")
    parser.add_argument("--steps", type=int, default=0, help="train this many steps instead")
    parser.add_argument("--tokens-per-step", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--smoothing", type=float, default=0.5, help="share ~ size ** smoothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    return parser.parse_args()


def main() -> None:
    """Train the tokenizer and the model and write both with the figures of the run."""
    args = read_arguments()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    excluded: set[tuple[str, str]] = set()
    if args.held_out:
        for line in args.held_out.read_text(encoding="utf-8").splitlines():
            source, key = line.split("\t")
            excluded.add((source, key))
    split = split_corpus(list(read_rows(args.text)), excluded)
    if args.tokenizer:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.tokenizer)
    else:
        tokenizer = train_tokenizer(split.train, args.smoothing, args.seed)
    if args.tokenizer_only:
        save_tokenizer(tokenizer, args.out)
        return
    streams = build_streams(split.train, tokenizer, args.seed, args.device)
    model = build_model(tokenizer).to(args.device)
    settings = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
    figures: dict[str, object] = {
        "settings": settings,
        "torch": torch.__version__,
        "parameters": model.num_parameters(),
        "tokens_by_language": {key: len(stream.plain) for key, stream in streams.items()},
    }
    figures |= train(model, streams, args)
    figures["held_out"] = report = held_out_report(model, tokenizer, split.held_out)
    for language, line in report.items():
        print(f"{language}  loss {line['loss']:.3f}  {line['bits_per_byte']:.3f} bits/byte")
    save(model, tokenizer, args.out)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    (args.out / "training.json").write_text(text + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
