"""Tokens as coloured boxes: what the loss counts, and what the model only reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_NAME = "text-align:left;vertical-align:top;padding:0.25em 0.8em 0.25em 0;white-space:nowrap"
_TOKEN = "border-radius:3px;padding:0.1em 0.15em;margin:0 1px;white-space:pre-wrap"
_COLOURS = {True: "background:hsl(140 70% 45% / 0.30)", False: "background:hsl(0 0% 50% / 0.12)"}


@dataclass(frozen=True)
class TokenRow:
    """One example: a name, its tokens as text, and for each whether the loss counts it."""

    name: str
    tokens: Sequence[str]
    counted: Sequence[bool]


@dataclass(frozen=True)
class TokenTable:
    """Examples below each other, which a notebook and a terminal can show."""

    rows: Sequence[TokenRow]
    caption: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def _repr_html_(self) -> str:
        body = "".join(
            f'<tr><td style="{_NAME}">{escape(row.name)}</td><td style="text-align:left;line-height:1.9">'
            + "".join(
                f'<span style="{_TOKEN};{_COLOURS[counts]}">{escape(_visible(token))}</span>'
                for token, counts in zip(row.tokens, row.counted, strict=True)
            )
            + "</td></tr>"
            for row in self.rows
        )
        caption = f'<caption style="text-align:left">{escape(self.caption)}</caption>' if self.caption else ""
        return f"<table>{caption}<tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [f"{row.name.ljust(width)}  {_plain(row)}" for row in self.rows]
        return "\n".join([self.caption, *lines] if self.caption else lines)


def _visible(token: str) -> str:
    return token.replace("\n", "⏎").replace(" ", "·") or "∅"


def _plain(row: TokenRow) -> str:
    """The tokens with brackets around each stretch that counts."""
    text, inside = "", False
    for token, counts in zip(row.tokens, row.counted, strict=True):
        if counts != inside:
            text, inside = text + ("[" if counts else "]"), counts
        text += token.replace("\n", "⏎")
    return text + ("]" if inside else "")
