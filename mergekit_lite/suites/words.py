"""Words that a file or a server brought along, as they can be shown: no control characters, and not too many."""

LENGTH = 300


def spelt(words: object) -> str:
    """Return `words` on one line, with escapes and other control characters spelt out, cut off after LENGTH."""
    text = str(words)
    plain = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[: LENGTH + 1])
    return plain if len(plain) <= LENGTH else plain[:LENGTH] + "..."
