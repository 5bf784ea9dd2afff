"""YAML that people write: read as plain values, with errors one can act on."""

import os
from pathlib import Path
from typing import Any

import yaml

from mergekit_lite.errors import KitError, shown


class _Loader(yaml.SafeLoader):
    """Plain values only, as `yaml.safe_load`; a key that is there twice is an error, not the last one's victory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > 10_000:  # merges (`<<`) of merges double at each level, and would never end
            raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as it is written: what is merged in later may be there again
        met: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in met:
                    words = f"{shown(key.value)} is there twice"
                    raise yaml.composer.ComposerError(None, None, words, key.start_mark)
                met.add(key.value)
        return node


def read_yaml(path: Path, called: str) -> Any:
    """Return the content of a YAML file.

    Args:
        path: of the file.
        called: what the file is called in errors.

    Raises:
        KitError: it cannot be read, is nested too deeply, or is not valid.
    """
    if not os.path.isfile(path):  # a folder, or a device that never ends
        raise KitError(f"{called} cannot be read: it is no file. Make it one.")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise KitError(f"{called} cannot be read ({error.strerror}). Make it a readable file.") from error
    except RecursionError as error:
        raise KitError(f"{called} is nested too deeply. Write it flat.") from error
    # Besides its own errors yaml raises what its constructors meet: a number of thousands of digits, `!!bool perhaps`.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        tab = " Indent with spaces: YAML takes no tabs." if "'\\t'" in str(error) else ""
        raise KitError(f"{called} is not valid YAML: {error}{tab}") from error
