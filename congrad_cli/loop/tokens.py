"""Messages -> token ids: what a model goes on from, and what of a text is weighed.

As TRL tokenises: conversations through the chat template, plain texts with the special tokens
that the tokenizer adds. Where a tokenizer has no chat template, one user message is plain text.
"""

from collections.abc import Sequence
from typing import Any

from congrad_cli.errors import ModelError
from congrad_cli.loop.loading import KEYS
from congrad_cli.loop.model_access import Message
from congrad_cli.tokenization import common_prefix, with_end


def is_plain(messages: Sequence[Message], tokenizer: Any) -> bool:
    """Whether the messages are a plain text to go on from."""
    if tokenizer.chat_template is not None:
        return False
    if len(messages) == 1 and messages[0]["role"] == "user":
        return True
    roles = ", ".join(message["role"] for message in messages)
    raise ModelError(
        "the model has no chat template, and a prompt is a conversation.",
        f"saw: roles {roles}",
        f"pass {KEYS.chat_template} FILE (Jinja, as the model was trained), "
        f"or {KEYS.chat_template} plain",
    )


def prompt_ids(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """What the model goes on from."""
    if is_plain(messages, tokenizer):
        return list(tokenizer(messages[0]["content"])["input_ids"])
    return _chat_ids(messages, tokenizer, add_generation_prompt=True)


def split_ids(
    messages: Sequence[Message], response: str, tokenizer: Any
) -> tuple[list[int], list[int]]:
    """The ids of the prompt, and those of the response after it.

    Without messages the response is a plain text of its own, from its first token on.
    """
    if not messages:
        return [], list(tokenizer(response)["input_ids"])
    prompt = prompt_ids(messages, tokenizer)
    if is_plain(messages, tokenizer):
        answer = with_end(response, tokenizer.eos_token or "")
        whole = list(tokenizer(messages[0]["content"] + answer)["input_ids"])
    else:
        whole = _chat_ids([*messages, {"role": "assistant", "content": response}], tokenizer)
    start = common_prefix(prompt, whole)
    return whole[:start], whole[start:]


def _chat_ids(messages: Sequence[Message], tokenizer: Any, **more: Any) -> list[int]:
    try:
        made = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, **more
        )
        return [int(token) for token in made["input_ids"]]
    except MemoryError:
        raise
    except Exception as error:  # a template is a program from elsewhere: anything may come
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(
            f"the chat template refuses a conversation: {reason}.",
            f"saw: roles {', '.join(message['role'] for message in messages)}",
            f"change the messages, or pass another {KEYS.chat_template} FILE",
        ) from error
