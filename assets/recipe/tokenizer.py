"""Stage `tokenizer`: a CLIP tokenizer in which every word of the grammar is one token.

Byte pairs are merged until the words of the grammar, and some plain English ones, are whole.
Any other word falls to pieces, so a name nobody knows is a handful of tokens of its own.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from .words import grammar_words

MAX_TOKENS = 32
END = "</w>"
_PLAIN_ENGLISH = """
photo picture drawing image painting sketch portrait landscape scene style art
of in on at with and by the his her its this that my your very
one two three four five many few some
large tiny cute old new bright dark light pretty round square long short soft flat
person man woman girl boy child dog bird horse bear rabbit mouse dragon robot monster creature
animal toy doll king queen hand head face eye eyes mouth smile hair crown hat dress shirt
car table chair door window street city room book cup ball shoe box bag
apple banana cake bread sky sun cloud rain water river lake fire mountain hill forest garden
happy sad angry sitting standing running sleeping looking holding wearing flying
cartoon watercolor pixel crayon pastel neon shiny wooden golden silver gold
grey beige violet cyan above below under behind front near next inside outside
"""


def byte_symbols() -> list[str]:
    """The printable stand-ins for the 256 bytes that CLIP's tokenizer uses, in its order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in stand_ins:
            stand_ins[byte] = chr(256 + len(stand_ins) - len(printable))
    return list(stand_ins.values())


def learn_merges(frequencies: dict[str, int]) -> list[tuple[str, str]]:
    """Merges, most frequent pair first, until every word is whole."""
    pieces = {word: [*word[:-1], word[-1] + END] for word in sorted(frequencies)}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += frequencies[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merged(parts, best) for word, parts in pieces.items()}


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result


def make_tokenizer(captions: list[str], folder: Path) -> None:
    from transformers import CLIPTokenizer

    counts = Counter(word for caption in captions for word in caption.split())
    frequencies = dict.fromkeys(_PLAIN_ENGLISH.split(), 20)
    frequencies |= {word: max(40, counts[word]) for word in grammar_words()}
    merges = learn_merges(frequencies)
    symbols = byte_symbols()
    vocabulary = symbols + [symbol + END for symbol in symbols]
    vocabulary += dict.fromkeys(first + second for first, second in merges)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    numbers = {token: number for number, token in enumerate(vocabulary)}
    vocabulary_file.write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    merges_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(vocabulary_file), str(merges_file), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    print(f"tokenizer: {len(tokenizer)} tokens, {len(merges)} merges", flush=True)
