"""Rules of TRL's tokenisation that hold for pairs and for single answers.

A prompt and the prompt with its answer are tokenised apart; the answer starts where they part
ways. A plain text's answer gets the end-of-sequence token unless it ends with it.
"""


def common_prefix(left: list[int], right: list[int]) -> int:
    """How many leading tokens two sequences share."""
    same, differ = 0, min(len(left), len(right))
    if left[:differ] == right[:differ]:
        return differ
    while differ - same > 1:  # left[:same] is right's, left[:differ] is not
        middle = (same + differ) // 2
        if left[same:middle] == right[same:middle]:
            same = middle
        else:
            differ = middle
    return same


def with_end(answer: str, end: str) -> str:
    """A plain text's answer, closed by the end-of-sequence token ``end``."""
    return answer if answer.endswith(end) else answer + end
