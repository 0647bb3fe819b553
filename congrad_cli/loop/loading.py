"""A checkpoint on this machine's device, for writing and for weighing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from congrad_cli.loop.settings import ModelSection
from congrad_cli.model_source import ModelSource, OptionNames, find_model

if TYPE_CHECKING:
    import torch

KEYS = OptionNames(
    model="[model] path =",
    chat_template="[model] chat_template =",
    device="[model] device =",
    dtype="[model] dtype =",
)
"""What the configuration file calls the options of a model."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model in evaluation mode with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    device: "torch.device"
    positions: int | None  # that the model has learned a vector for; more of them are an error

    @property
    def context(self) -> int | None:
        """How many tokens the model was made for; None where it does not say."""
        config = self.model.config.get_text_config()
        known = (self.positions, getattr(config, "max_position_embeddings", None))
        return min((limit for limit in known if limit is not None), default=None)


def source_of(model: str, about: ModelSection) -> ModelSource:
    """Where ``model`` comes from: the revision is that of ``[model] path`` alone."""
    revision = about.revision if model == about.path else None
    return find_model(model, revision, options=KEYS)


def load(model: str, about: ModelSection) -> Checkpoint:
    """Load ``model``, a folder, a ``.gguf`` file or a hub name, as ``[model]`` says."""
    source = source_of(model, about)
    import torch

    from congrad_cli import checkpoint

    if about.threads:
        torch.set_num_threads(about.threads)
    device, dtype = checkpoint.choose_place(source, about.device, about.dtype)
    tokenizer = checkpoint.load_tokenizer(source, about.chat_template)
    loaded = checkpoint.load_model(source, device, dtype)
    return Checkpoint(
        source.name, loaded, tokenizer, device, checkpoint.position_limit(loaded)
    )
