"""What the grader and the process of a submission say to each other: framed messages over two pipes.

A message is JSON or tensors in the format of safetensors. Nothing is pickled, so that reading one runs nothing.
"""

import json
from collections.abc import Mapping
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

WORDS, TENSORS = b"w", b"t"
MOST_WORDS = 2**20  # bytes of a message in JSON


class Garbled(Exception):
    """What arrived is no message: the other side wrote something of its own."""


def send_words(stream: IO[bytes], message: Mapping[str, Any]) -> None:
    """Send what JSON can say."""
    _send(stream, WORDS, json.dumps(message).encode())


def send_tensors(stream: IO[bytes], tensors: Mapping[str, Tensor]) -> None:
    """Send tensors by name."""
    _send(stream, TENSORS, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def receive(stream: IO[bytes], most: int) -> dict[str, Any] | dict[str, Tensor] | None:
    """Return the next message, None where the other side has closed its end.

    Args:
        stream: a pipe.
        most: bytes of tensors that are taken.

    Raises:
        Garbled: it is none, or a longer one.
    """
    head = _exactly(stream, 9)
    if head is None:
        return None
    kind, size = head[:1], int.from_bytes(head[1:], "big")
    if kind not in (WORDS, TENSORS) or size > (most if kind == TENSORS else MOST_WORDS):
        raise Garbled(f"a message of {size} bytes")
    body = _exactly(stream, size)
    if body is None:
        return None
    try:
        if kind == TENSORS:
            return load(body)
        message = json.loads(body)
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise Garbled(type(error).__name__) from error
    if not isinstance(message, dict):
        raise Garbled(type(message).__name__)
    return message


def _send(stream: IO[bytes], kind: bytes, body: bytes) -> None:
    stream.write(kind + len(body).to_bytes(8, "big") + body)
    stream.flush()


def _exactly(stream: IO[bytes], size: int) -> bytes | None:
    """Return the next `size` bytes, None if the stream ends before."""
    body = stream.read(size)
    return body if len(body) == size else None
