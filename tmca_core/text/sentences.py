"""Where the sentences of a report end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tmca_core.text.words import Word

_SENTENCE_END = re.compile(r"[;!?\n]|\.(?=\s|$)|^\.(?=\D)")

_LONGEST_SENTENCE = 250


def sentences(words: Sequence[Word], text: str) -> Iterator[tuple[list[Word], str]]:
    """Sentences as word lists, each with the text between its last word and the next sentence's first."""
    sentence: list[Word] = []
    for word in words:
        # A text without full stops is cut, so that the time to parse grows linearly with its length.
        if sentence and (_SENTENCE_END.search(word.gap) or len(sentence) == _LONGEST_SENTENCE):
            yield sentence, word.gap
            sentence = []
        sentence.append(word)
    if sentence:
        yield sentence, text[sentence[-1].end :]
