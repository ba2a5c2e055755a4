"""The reference of every configuration key, made from the texts under the fields of the dataclasses.

python -m runner.reference > docs/reference.md
python -m runner.reference keys > runner/config/keys.txt     # their names alone, for mistakes of spelling
python -m runner.reference schema > docs/schema.json         # a JSON schema of the composed configuration, for editors

A test compares this output with the files.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, fields
from enum import Enum
from importlib.resources import files
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from runner.config.compose import register
from runner.config.experiment import GROUPS, Experiment
from runner.config.keys import all_keys, values_of
from runner.config.recipe import FinetuneRecipe
from runner.config.runtime import RuntimeSettings
from runner.config.training import Training
from runner.system.errors import UserError
from runner.system.process import command
from runner.system.spelling import N_OF_M
from runner.tracking import Tracking

SECTIONS = {"train": Training, "finetune": Training, "tracking": Tracking}
"""Keys of the experiment that have keys of their own, but are not a group."""


@dataclass
class Key:
    """A field of a dataclass, as the reference shows it."""

    name: str
    kind: str
    default: str
    meaning: str


def keys(cls: type, without: Collection[str] = ()) -> list[Key]:
    """The fields of a dataclass in their order, with the text under each.

    Args:
        without: fields to leave out.

    Raises:
        ValueError: a field has no text.
    """
    texts = dict(entry for base in reversed(cls.__mro__) for entry in _texts(base))
    wanted = [field for field in fields(cls) if field.name not in without]
    missing = [field.name for field in wanted if field.name not in texts]
    if missing:
        raise ValueError(f"{cls.__name__}: nothing stands under {', '.join(missing)}")
    return [Key(f.name, _kind(f.type), _default(f), " ".join(texts[f.name].split())) for f in wanted]


def _texts(cls: type) -> Iterator[tuple[str, str]]:
    """The texts of the fields that a class declares itself, by name."""
    if not dataclasses.is_dataclass(cls):
        return
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    assert isinstance(tree.body[0], ast.ClassDef)
    for node, after in itertools.pairwise(tree.body[0].body):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            yield node.target.id, after.value.value


def _kind(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{member.name}`" for member in annotation)
    return f"`{text}`"


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not NO_DEFAULT else field.default
    if value is NO_DEFAULT or value == MISSING:
        return ""
    if isinstance(value, Enum):
        return f"`{value.name}`"
    if value is None or dataclasses.is_dataclass(value):  # the fields of a nested dataclass have lines of their own
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


# --- the groups ---------------------------------------------------------------------------------------------


@dataclass
class Option:
    """A YAML file of a group, or one that is stored from code."""

    name: str
    schema: str
    """The dataclass that it fills."""
    about: str
    """The comment at its beginning."""


def options(group: str) -> list[Option]:
    """The options of a group, by name."""
    all_options = []
    for file in files("conf").joinpath(group).iterdir():
        if file.name.endswith(".yaml"):
            lines = file.read_text(encoding="utf-8").splitlines()
            about = " ".join(line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line)
            schema = next(line.rsplit("/", 1)[1] for line in lines if f"/schema/{group}/" in line)
            all_options.append(Option(file.name.removesuffix(".yaml"), schema, about))
    if group == "pattern":
        all_options += [Option(f"{n}:{m}", "NofM", "") for n, m in N_OF_M]
    return sorted(all_options, key=lambda option: option.name)


def page() -> str:
    """The whole reference, in Markdown."""
    register()
    parts = [HEAD, "## The run\n", _table(keys(Experiment, {*GROUPS, *SECTIONS}))]
    for group, base in GROUPS.items():
        parts += [f"## `{group}`\n", *_group(group, base)]
    training = keys(Training)
    parts += ["## `train` and `finetune`\n", _sentence(Training), _table(training)]
    parts += ["## `tracking`\n", _sentence(Tracking), _table(keys(Tracking))]
    parts += ["## `runner.evaluate`\n", _sentence(RuntimeSettings), _table(keys(RuntimeSettings))]
    return "\n".join(parts)


def _group(group: str, base: type) -> Iterator[str]:
    classes = [base, *_below(base)]
    by_class = {cls.__name__: cls for cls in classes}
    for cls in classes:
        of_class = [option for option in options(group) if option.schema == cls.__name__]
        if not of_class:
            continue
        if len(by_class) > 1:
            yield f"### {', '.join(f'`{option.name}`' for option in of_class)}\n"
        yield _sentence(cls)
        yield "".join(f"* `{group}={option.name}`: {option.about}\n" for option in of_class if option.about)
        entries = keys(cls)
        if entries:
            yield _table(entries, f"{group}.")
    if group == "recipe":
        yield "### `recipe.finetune`\n"
        yield _sentence(FinetuneRecipe)
        yield _table(keys(FinetuneRecipe), f"{group}.finetune.")
    assert by_class.keys() >= {option.schema for option in options(group)}


def _below(cls: type) -> Iterator[type]:
    ours = [
        sub for sub in cls.__subclasses__() if sub.__module__.split(".")[0] in ("runner", "pruning")
    ]  # not a test's
    # In the order of the sources, which does not depend on the order of imports.
    for sub in sorted(ours, key=lambda sub: (sub.__module__, inspect.getsourcelines(sub)[1])):
        yield sub
        yield from _below(sub)


def _sentence(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()) + "\n"


def _table(entries: list[Key], prefix: str = "") -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in entries:
        cells = (f"`{prefix}{key.name}`", key.kind, key.default, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


ABOUT_DEFAULTS = """A default is that of the dataclass: an option of the group or a recipe may say
otherwise, as `python -m runner --cfg job --resolve` shows."""
HEAD = f"""# Every key

Made by `python -m runner.reference` from the fields of the dataclasses; a test compares. A value stands on the command
line as `key=value`, or in YAML. {ABOUT_DEFAULTS}
"""


def names() -> str:
    """The name of every key, one a line, and the values of those that take one of a few names."""
    register()
    return "".join(f"{' '.join([key, *values_of(key)])}\n" for key in sorted({*all_keys(), *SECTIONS}))


# --- the JSON schema ----------------------------------------------------------------------------------------

_PLAIN: dict[Any, Any] = {str: ["string", "number"], float: "number", int: "integer", bool: "boolean", NoneType: "null"}
"""Types of JSON by those of Python. OmegaConf takes a number where a text is asked for: `schedule.start=0`."""


def schema() -> str:
    """The JSON schema (draft 7, which editors know) of a composed configuration, such as the config.yaml of a run.

    A group has one of the classes that its options fill; the configuration does not name it. No key is required, as a
    default stands in; `defaults` and `hydra` are accepted for files of the group `experiment`.
    """
    register()
    definitions: dict[str, Any] = {"interpolation": {"type": "string", "pattern": r"\$\{"}}
    accepted: dict[str, Any] = {
        "defaults": {"description": "Hydra's list of options, in a file of the group experiment.", "type": "array"},
        "hydra": {"description": "Settings of Hydra, in a file of the group experiment.", "type": "object"},
    }
    for group, base in GROUPS.items():
        names = {cls: [o.name for o in options(group) if o.schema == cls.__name__] for cls in [base, *_below(base)]}
        of_group = {cls: _sentence(cls).strip() + f" {group}={', '.join(of)}" for cls, of in names.items() if of}
        choices = [_defined(cls, definitions, text) for cls, text in of_group.items()]
        accepted[group] = {"description": _sentence(base).strip(), "anyOf": choices}
    for key, cls in SECTIONS.items():
        accepted[key] = {"description": _sentence(cls).strip(), "anyOf": [_defined(cls, definitions, "")]}
    accepted |= _properties(Experiment, {*GROUPS, *SECTIONS}, definitions)
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "prune-distill"}
    whole = head | _object(accepted, ABOUT_DEFAULTS) | {"definitions": definitions}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _object(properties: dict[str, Any], description: str) -> dict[str, Any]:
    text = " ".join(description.split())
    return {"description": text, "type": "object", "properties": properties, "additionalProperties": False}


def _defined(cls: type, definitions: dict[str, Any], description: str) -> dict[str, Any]:
    """A reference to the definition of a dataclass, which is added."""
    if cls.__name__ not in definitions:
        properties = _properties(cls, (), definitions)
        definitions[cls.__name__] = _object(properties, description or _sentence(cls))
    return {"$ref": f"#/definitions/{cls.__name__}"}


def _properties(cls: type, without: Collection[str], definitions: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass; each may also be an interpolation, as `--cfg job` shows it without `--resolve`."""
    hints, of_class = get_type_hints(cls), {field.name: field for field in fields(cls)}
    properties = {}
    for key in keys(cls, without):
        default = _json_default(of_class[key.name])
        kinds = [*_accepted(hints[key.name], definitions), {"$ref": "#/definitions/interpolation"}]
        properties[key.name] = {"description": key.meaning, **default, "anyOf": kinds}
    return properties


def _accepted(hint: Any, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of a type, any of which may hold."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return [kind for each in arguments for kind in _accepted(each, definitions)]
    if origin is list:
        return [{"type": "array", "items": {"anyOf": _accepted(arguments[0], definitions)}}]
    if origin is dict:
        return [{"type": "object", "additionalProperties": {"anyOf": _accepted(arguments[1], definitions)}}]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [_defined(hint, definitions, "")]
    if issubclass(hint, Enum):
        return [{"enum": [member.name for member in hint]}]
    return [{} if hint is Any else {"type": _PLAIN[hint]}]  # what is Any is checked by its class


def _json_default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    value = field.default_factory() if field.default_factory is not NO_DEFAULT else field.default
    if value is NO_DEFAULT or value == MISSING or dataclasses.is_dataclass(value):
        return {}
    return {"default": value.name if isinstance(value, Enum) else value}


LISTS = {"": page, "keys": names, "schema": schema}
"""What the command prints, by its argument."""


def main(arguments: list[str]) -> None:
    """Print the list that is asked for."""
    asked = " ".join(arguments)
    if asked not in LISTS:
        raise UserError(f"{asked}: there is no such list; python -m runner.reference [keys | schema]")
    print(LISTS[asked](), end="")


if __name__ == "__main__":
    command(main)
