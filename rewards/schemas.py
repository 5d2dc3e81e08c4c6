"""JSON Schemas from data rows: checked before training, applied to answers; nothing is fetched.

Both run in the answer processes (rewards/answer_process.py), because a `pattern` may take exponential time and a
recursive schema may exhaust the stack. The module therefore imports nothing of the project.
"""

import json
from functools import lru_cache
from typing import Any

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    import jsonschema
    from referencing import Registry

    contents = json.loads(schema)
    # A registry of its own: the library's default one fetches what a $ref names.
    return jsonschema.validators.validator_for(contents)(contents, registry=Registry())


def schema_fault(schema: str) -> str:
    """The fault of a schema; empty for a valid one whose references all lead to a part of itself."""
    import jsonschema
    from referencing.exceptions import Unresolvable

    try:
        contents = json.loads(schema)
        if not isinstance(contents, (dict, bool)):
            return "it is not a JSON object"
        jsonschema.validators.validator_for(contents).check_schema(contents)
        _follow(_validator(schema))
    except jsonschema.SchemaError as error:
        return f"{error.json_path}: {error.message[:200]}"
    except Unresolvable as error:
        return f"its reference {error.ref!r} leads to no part of the schema, and nothing is fetched"
    except RecursionError:
        return "it is nested too deeply"
    except Exception as error:  # the libraries raise many kinds for what is no schema
        return f"{type(error).__name__}: {str(error)[:200]}"
    return ""


def _follow(validator: Any) -> None:
    """Resolve every reference of a schema, and those of what they lead to."""
    from referencing.jsonschema import specification_with

    specification = specification_with(validator.META_SCHEMA["$schema"])
    waiting, seen = [(specification.create_resource(validator.schema), validator._resolver)], set()
    while waiting:
        resource, resolver = waiting.pop()
        if id(resource.contents) in seen or not isinstance(resource.contents, dict):
            continue
        seen.add(id(resource.contents))
        for name in REFERENCES:
            if isinstance(reference := resource.contents.get(name), str):
                resolved = resolver.lookup(reference)
                waiting.append((specification.create_resource(resolved.contents), resolved.resolver))
        waiting += [(part, resolver.in_subresource(part)) for part in resource.subresources()]


def fits(schema: str, text: str) -> bool:
    """Whether the JSON value of a text satisfies a schema."""
    return bool(_validator(schema).is_valid(json.loads(text)))
