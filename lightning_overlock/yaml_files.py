"""Configurations as YAML: numbers are read as numbers, and a name stays the name it is.

YAML takes `3e8`, `1_000`, `no` and `null` for numbers and other values. Libraries differ on the
first: PyYAML calls it a word, jsonargparse a number. What is written here is quoted wherever one of
them would read it as something else.
"""

import re
from typing import Any

import yaml

from lightning_overlock.errors import InputError

_FLOAT_TAG = "tag:yaml.org,2002:float"
_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
# Also without a point (1e-3) or a sign in the exponent (1.5e3).
_FLOAT = re.compile(r"[-+]?(\d[\d_]*)?(\.[\d_]*)?([eE][-+]?\d+)?$|[-+]?\.(inf|nan)$", re.I)
_SCIENTIFIC = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, a date as a word, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(getattr(key_node, "value", ""))
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes words that a reader could take for numbers."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Write a list that stands twice twice."""
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_FLOAT_TAG, _SCIENTIFIC, list("-+0123456789."))
_Dumper.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping that a text holds, {} for an empty one.

    Args:
        text: YAML.
        source: Where it is from, for messages.

    Raises:
        InputError: If it is no YAML mapping.
    """
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{source}{line}: not valid YAML ({problem}).") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{source}: found {str(content)[:60]!r}, expected YAML `option: value`.")
    return content


def dump_yaml(content: dict[str, Any]) -> str:
    """Return a mapping as YAML from which every reader gets the same values."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
