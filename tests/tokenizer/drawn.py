"""Texts that tokenizers have stumbled over, drawn at random and the same for each seed."""

import random
import unicodedata

from gptladder.tokenizer import END_OF_TEXT


def split(text: str, at: str = " ") -> list[str]:
    """Return the parts of a text."""
    return text.split(at)


# Pieces that tokenizers have stumbled over, between which any other text may stand.
BLANKS = split(" |  |\n|\r\n|\r|\t|   \n |\u00a0|\u0085|\u2028|\u3000|\u180e|\x1c|\x0b|\x0c", "|")
HIDDEN = split("\x00 \ufeff \u200b \u200c \u200d \u200e \u202e \u2060 \U000e0001 \x7f \x1b")
MARKS = split("\u0301 \u0300\u0301 \u20dd \u0e31 \u093f \u05b8 \u064e \ufe0f e\u0301 a\u0323\u0307 \u1112\u1161\u11ab")
WORDS = split(
    "' 's 're 'll 'LL don't I' ''t ’s a B word Word WORD Ünïcödé ﬁ ß İ ı Σας dog's it'll the cat sat on mat "
    "New York PersonA covid19 foo bar hello ▁ ▁the ## ##ing Ġ Ġthe Ċ â é"
)
SIGNS = split("1 2024 ½ ٣ ² Ⅷ ! ... ?! _ -- < <| |> < > [ ] <0x41> 3.14 €")
SCRIPTS = split(
    "日本語 狐狸 한국어 ไทย हिन्दी שלום مرحبا العربية 🙂 👩\u200d👩\u200d👧\u200d👦 🇫🇷 👍🏽 𝒳 ﷺ \U0010ffff \ue000 "
    "\u202eabc"
)
SPECIALS = split(
    f"{END_OF_TEXT} <|endoftext endoftext|> <s> </s> <pad> [UNK] [CLS] [SEP] [MASK] <mask> <unk> <|user|> <|bot|>"
)
PIECES = [BLANKS, HIDDEN, MARKS, WORDS, SIGNS, SCRIPTS, SPECIALS]


def texts(number: int, seed: int, *, extra: tuple[str, ...] = ()) -> list[str]:
    """Return texts of the pieces above and of characters of all kinds, the same ones for each seed."""
    draw = random.Random(seed)
    groups = [*PIECES, *([list(extra)] * 2 if extra else [])]
    made = []
    for _ in range(number):
        parts = []
        for _ in range(draw.randint(0, 12)):
            kind = draw.random()
            if kind < 0.75:
                parts.append(draw.choice(draw.choice(groups)))
            elif kind < 0.85:
                parts.append(draw.choice(draw.choice(groups)) * draw.randint(2, 40))
            else:
                parts.append(any_character(draw))
        made.append("".join(parts))
    return made


def any_character(draw: random.Random) -> str:
    """Return a character that is assigned, of any script."""
    while True:
        character = chr(draw.choice((draw.randrange(0x3000), draw.randrange(0x20000))))
        if unicodedata.category(character) not in ("Cs", "Co", "Cn"):
            return character
