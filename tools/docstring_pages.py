"""An extension of mkdocstrings: docstrings of this project as Markdown.

Their sections name several arguments a line, as in "softcap, temperature: as in `cross_entropy`", which parsers of
Google's style drop. Here a section becomes a heading in bold and a list, an example a block of code.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

SECTION = re.compile(r"^([A-Z][\w ]*):$")
DIRECTIVE = re.compile(r"^ *\.\. code-block:: \w+$\n?", re.MULTILINE)
CODE = re.compile(r"(``.*?``|`.*?`)", re.DOTALL)


class DocstringPages(griffe.Extension):  # type: ignore[misc,unused-ignore]
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """The docstring as Markdown; an indented paragraph of it stays code.

    >>> print(markdown("Sum.\\n\\nArgs:\\n    a, b: in [0, 1]\\n        or None."))
    Sum.
    <BLANKLINE>
    **Args**
    <BLANKLINE>
    - **a, b**: in &#91;0, 1] or None.
    """
    blocks = []
    for paragraph in re.split(r"\n{2,}", DIRECTIVE.sub("", docstring)):
        head, _, rest = paragraph.partition("\n")
        title = SECTION.match(head)
        if title and rest.startswith("    "):
            blocks += [f"**{title[1]}**", section(textwrap.dedent(rest))]
        elif head.startswith("    "):
            blocks.append(fenced(textwrap.dedent(paragraph)) if ">>> " in paragraph else paragraph)
        else:
            blocks.append(fenced(paragraph) if head.startswith(">>> ") else prose(paragraph))
    return "\n\n".join(block for block in blocks if block)


def section(body: str) -> str:
    if body.startswith(">>> "):
        return fenced(body)
    entries = re.split(r"\n(?=\S)", body)
    if not all(re.match(r"[\w*.`, \n]+: ", entry) for entry in entries[:1]):
        return prose(body)
    joined: list[str] = []
    for entry in entries:  # a list of names may go on in a second line
        if joined and ": " not in joined[-1]:
            joined[-1] += " " + entry
        else:
            joined.append(entry)
    return "\n".join("- " + named(" ".join(entry.split())) for entry in joined)


def named(entry: str) -> str:
    names, colon, text = entry.partition(": ")
    return f"**{names.replace('*', chr(92) + '*')}**: {prose(text)}" if colon else prose(entry)


def prose(text: str) -> str:
    """A bracket is no link here."""
    return "".join(part if part.startswith("`") else part.replace("[", "&#91;") for part in CODE.split(text))


def fenced(text: str) -> str:
    return f"```pycon\n{text}\n```"
