"""Every key of the loop's configuration file, as frozen dataclasses: one for each section.

Paths are relative to the configuration file. Keys that name a secret do not exist: API keys are
read from the environment, from the variable that ``api_key_env`` names.
"""

from dataclasses import dataclass, field

BACKENDS = ("transformers", "openai", "vllm")
JUDGES = ("self", "initial", "endpoint", "implicit-reward", "log-prob")
"""Who scores candidates: the round's model or the first one by the rubric, a server by the
rubric, beta log(pi/pi_ref) between two checkpoints, or the mean token log-probability."""
SCORED = ("implicit-reward", "log-prob")
"""Those of them that need no text of a judge, but log-probabilities."""
REFERENCES = ("previous", "initial")
TRAIN_LOSSES = ("dpo", "lp-dpo")
LAUNCHERS = ("none", "torchrun", "accelerate")


@dataclass(frozen=True, slots=True)
class RunSection:
    """``[run]``"""

    folder: str = ""  # where all results go
    rounds: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ModelSection:
    """``[model]``: the initial policy, and how it is loaded in every stage of this machine."""

    path: str = ""  # a folder, a .gguf file or a hub name
    revision: str | None = None
    chat_template: str | None = None  # a file, or "plain"
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class PromptsSection:
    """``[prompts]``: pools of prompts by language; every round takes a slice of its own."""

    files: tuple[str, ...] = ()  # files, globs, or a path with {lang} in it
    languages: tuple[str, ...] = ()  # empty: all that the files have
    per_language: int = 100  # prompts of each language in each round
    translate_from: str | None = None  # self-translation: prompts of this language, into the others
    translate_into: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendSection:
    """``[backend]``: what writes candidates and judgements; ``[judge.backend]`` is another one."""

    kind: str = "transformers"  # one of BACKENDS
    batch: int = 8  # transformers: sequences generated at a time
    url: str | None = None  # openai: http://HOST:PORT/v1
    model: str | None = None  # openai: the served model's name; None: the path of the round's model
    serve: str | None = None  # openai: a command that serves {model} on {port}; run for each round
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8  # openai: requests under way at a time
    timeout: float = 120.0  # seconds a request may take
    retries: int = 5  # of a request that failed, with growing pauses


@dataclass(frozen=True, slots=True)
class GenerateSection:
    """``[generate]``"""

    candidates: int = 4
    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 1024
    system: str | None = None  # a system message; {language} in it is the language's English name


@dataclass(frozen=True, slots=True)
class JudgeSection:
    """``[judge]``"""

    kind: str = "self"  # one of JUDGES
    reference: str | None = None  # implicit-reward: the model that rewards are measured from
    template: str | None = None  # a Jinja file in place of the built-in rubric
    samples: int = 3  # judgements of a candidate, averaged
    min_valid: int = 1  # of them that must hold a score
    retries: int = 2  # of a judgement without a score, each with a new seed
    max_invalid: float = 0.5  # a larger share of judgements without a score stops the run
    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 512
    backend: BackendSection | None = None  # None: as [backend]


@dataclass(frozen=True, slots=True)
class PairsSection:
    """``[pairs]``: best against worst."""

    margin: float = 0.0  # the best must be ahead of the worst by more than this
    check_language: bool = True
    min_confidence: float = 0.8  # of the language check
    min_chars: int = 1


@dataclass(frozen=True, slots=True)
class LossSection:
    """``[loss]``: of the training, and of the weights of ``consensus`` and ``filter``."""

    name: str = "lp-dpo"  # one of TRAIN_LOSSES
    beta: float = 0.1
    length_penalty: float = 0.01


@dataclass(frozen=True, slots=True)
class SketchSection:
    """``[sketch]``: options of ``congrad sketch`` by their names, with _ for -."""

    max_length: int = 1024
    row_size: str | None = None
    dim: int | None = None
    width: int | None = None
    layers: str = "blocks"
    seed: int = 0
    batch_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ConsensusSection:
    """``[consensus]``: options of ``congrad consensus``; the loss is that of ``[loss]``."""

    method: str = "pcgrad"
    orders: int = 32
    seed: int = 0
    average: str = "mean"
    pair_norm: str = "unit"
    normalize_groups: str = "none"
    min_pairs: int = 1


@dataclass(frozen=True, slots=True)
class FilterSection:
    """``[filter]``: options of ``congrad filter``; ``enabled = false`` trains on all pairs."""

    enabled: bool = True
    min_score: float | None = None
    keep_ratio: float | None = None
    per_group: bool = False
    keep_at_least: int | None = None
    rank_by: str = "score"


@dataclass(frozen=True, slots=True)
class TrainSection:
    """``[train]``: TRL's DPOTrainer in a process of its own."""

    reference: str = "previous"  # one of REFERENCES
    learning_rate: float = 1e-6
    epochs: float = 1.0
    max_steps: int = -1
    batch: int = 8  # pairs of an optimiser step, over all processes
    device_batch: int = 1  # pairs at a time on one device
    max_length: int = 1024
    warmup_ratio: float = 0.1
    schedule: str = "linear"
    lora_rank: int = 0  # 0: all weights
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    precompute_reference: bool = True
    save_steps: int = 100
    save_dtype: str = "auto"  # of the trained model's folder; auto: that of the model before
    launcher: str = "none"  # one of LAUNCHERS
    processes: int = 1
    accelerate_config: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluateSection:
    """``[evaluate]``: what each round is measured by; empty lists leave a measure out."""

    prompts: tuple[str, ...] = ()  # held-out prompts, for win rate, language and length
    pairs: tuple[str, ...] = ()  # held-out preference pairs, for accuracy and margin
    text: tuple[str, ...] = ()  # held-out text, for perplexity: JSONL with language and text
    per_language: int = 50
    win_rate: bool = True


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """The whole file."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    prompts: PromptsSection = field(default_factory=PromptsSection)
    backend: BackendSection = field(default_factory=BackendSection)
    generate: GenerateSection = field(default_factory=GenerateSection)
    judge: JudgeSection = field(default_factory=JudgeSection)
    pairs: PairsSection = field(default_factory=PairsSection)
    loss: LossSection = field(default_factory=LossSection)
    sketch: SketchSection = field(default_factory=SketchSection)
    consensus: ConsensusSection = field(default_factory=ConsensusSection)
    filter: FilterSection = field(default_factory=FilterSection)
    train: TrainSection = field(default_factory=TrainSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
