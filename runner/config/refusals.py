"""Errors of Hydra and OmegaConf as one sentence: what was given, what is wrong with it, what to do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from traceback import extract_tb

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from pruning import PruningError
from runner.config.keys import CHOICES, nearest, unknown_key
from runner.system.errors import UserError, causes_of
from runner.system.spelling import no_option, no_value

_OPTUNA = "hydra/sweeper=optuna needs the plugin of Hydra for Optuna: .venv/bin/pip install -e '.[optuna]'"


@contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf into a UserError.

    Args:
        overrides: the command line, in which to look for what an error does not name.
    """
    try:
        yield
    except Exception as error:
        known = next((c for c in causes_of(error) if isinstance(c, (UserError, PruningError))), None)
        if known is error:
            raise
        if known is not None:  # OmegaConf and Hydra wrap what our dataclasses raise
            raise known from error
        text = _explanation(error, overrides)
        if text is None:
            raise
        raise UserError(text) from error


def _explanation(error: Exception, overrides: Sequence[str]) -> str | None:
    causes = causes_of(error)
    text = "\n".join(str(cause).strip() for cause in causes)
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return _of_another_kind(error, overrides)
    if isinstance(error, OverrideParseException):
        return quoting(error.override)
    if "'hydra/sweeper/optuna'" in text:
        return _OPTUNA
    if isinstance(error, MissingConfigException):
        return _missing(error)
    given = _given(text)
    unknown = re.search(r"Key '(.*)' (?:not in '(\w+)'|is not in struct)\s+full_key: (\S+)", text)
    if unknown and "." in unknown[1]:
        return f"{given}: {unknown[1]} is one key here; write each part on a line of its own, indented below the other"
    if unknown:
        return _unknown(unknown[3], unknown[2], given)
    several = re.search(r"Ambiguous value for argument '(.*)'|Sweep parameters '(.*)' requires", text)
    if several:
        comma = several[1] and several[1].partition("=")[0] not in CHOICES
        remedy = f"; for one value with a comma, type {advice(several[1])}" if comma else ""
        return f"{several[1] or several[2]}: these are several values: add -m to run each of them{remedy}"
    twice = re.search(r"Multiple values for (\S+?)\. .*: (.*)'|force-add of config groups.*'\+\+(.*)=(.*)'", text)
    if twice:
        group, option = twice[1] or twice[3], twice[2] or twice[4]
        return f"+{group}={option}: the group {group} has an option already; leave the + out: {group}={option}"
    deleted = next((o for o in overrides if o.startswith("~")), None)
    if deleted and "possible interpolation keys" in text:
        return f"{deleted}: a run needs this group; choose another option of it"
    group = re.search(r"In '(.*)': Could not override '(.*)'\. No match", text)
    if group:
        meant = nearest(group[2])
        return f"{group[1]}.yaml: there is no group {group[2]}" + (f"; did you mean {meant}?" if meant else "")
    return _one_line(text, given or "")


_INTERNAL = (
    "object_type=|reference_type=|full_key:|To append to your|Or add a second \\+|Config search path|provider=|"
    "Error merging override|See https://hydra.cc/docs|raised while composing"
)
"""Lines of Hydra and OmegaConf that name no mistake, or give bad advice: an appended key would not be read."""


_NEEDS = {
    "could not be converted to Integer": "a whole number is needed",
    "could not be converted to Float": "a number is needed",
    "is not a valid bool": "true or false is needed",
    "is not a ListConfig, list or tuple": "a list is needed, in brackets",
    "is not Optional": "a value is needed, not null",
    "is not a subclass of": "it has keys of its own; give one of these a value",
    "An item is already at": "the key has a value already; leave the + out",
}
"""Words of OmegaConf and Hydra and what they mean."""


def _one_line(text: str, place: str) -> str:
    """What is left of a message, in one line that begins with what was given."""
    key = re.search(r"full_key: (\S+)", text)
    if key and "=" not in place:
        value = re.search(r"Value '(.*)' (?:of type|is not)", text)
        place = f"{place}{': ' if place else ''}{key[1]}" + (f"={value[1]}" if value else "")
    named = re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", text)
    if named and "=" in place:
        return no_value(place.partition("=")[0], named[1], named[2].split(", "))
    need = next((meaning for words, meaning in _NEEDS.items() if words in text and place), None)
    lines = [line.strip().rstrip(".:") for line in text.splitlines() if line.strip() and not re.search(_INTERNAL, line)]
    text = need or "; ".join(dict.fromkeys(lines))
    text += r"; the characters ${ themselves are written \${" if "Interpolation key" in text else ""
    return text if not place or text.startswith(place) else f"{place}: {text}"


def _given(text: str) -> str | None:
    """The override or the file that an error is about."""
    override = re.search(r"To append to your (?:config|default list) use \+(.*)|Error merging override (.*)|"
                         r"Either remove \+ prefix: '(.*)'", text)  # fmt: skip
    if override:
        return override[1] or override[2] or f"+{override[3]}"
    file = re.search(r"In '(.*)': \w+ raised while composing", text)
    return f"{file[1]}.yaml" if file else None


def _unknown(key: str, kind: str | None, given: str | None) -> str:
    if key.startswith("hydra."):
        return f"{given or key}: Hydra has no key {key}"
    if given and given.startswith(f"{key}/"):
        return f"{given}: there is no key {key}; begin the file with the line: # @package _global_"
    return str(unknown_key(key, given or key, kind))


def _of_another_kind(error: Exception, overrides: Sequence[str]) -> str | None:
    """The message for mistakes that end in an error of Python or of the YAML library; None for any other error."""
    text = str(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: this is not YAML: {error.problem}"
    if isinstance(error, UnicodeDecodeError) and any(
        "config_source" in f.filename for f in extract_tb(error.__traceback__)
    ):
        before = error.object[max(0, error.start - 30) : error.start].decode(errors="replace")
        return f"a YAML file of the configuration is not UTF-8, after {before!r}; save it in UTF-8"
    if not isinstance(error, ValueError):
        return None
    if text.startswith("Only one of --run, --multirun"):
        return "-m runs a sweep, and --cfg and --info show one run: leave one of them out"
    if text.startswith("Invalid defaults list"):
        return text
    number = re.match(r"Config group override must be a string or a list. Got (\w+)|Unsupported item value in", text)
    if number is None:
        return None
    if number[1] is None:
        return 'defaults: YAML reads an option such as 2:4 as a number unless it is quoted: write "2:4"'
    values = {"NoneType": "null", "int": r"[\d_]+"}
    given = next((o for o in overrides if re.fullmatch(rf"\+?[\w/@]+={values.get(number[1], '.*')}", o)), "a group")
    return f"{given}: a group takes the name of an option, not {number[1].replace('NoneType', 'null')}; leave it out"


def _missing(error: MissingConfigException) -> str:
    """The message for an option or a file that does not exist."""
    text, name = str(error), str(error.missing_cfg_file or "")
    group, _, option = name.partition("/") if name.partition("/")[0] in CHOICES else name.rpartition("/")
    if not group:
        return " ".join(line.strip() for line in text.splitlines() if not re.search(_INTERNAL, line))
    file = re.match(r"In '(.*)':", text)
    place = f"{file[1]}.yaml: " if file and file[1] not in ("config", "hydra/config") else ""
    return no_option(place, group, option, error.options or ())


_SWEEP = re.compile(r"(glob|choice|range|interval|shuffle|sort|tag)\(.*\)$", re.DOTALL)


def quoting(override: str) -> str:
    """The message for an override that Hydra's grammar does not accept."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]{0,2}[A-Za-z_][\w-]*(?:[./@][\w:*@-]+)*", key):
        return f"{override}: an override is KEY=VALUE, such as model=bert-mini, without blanks around the ="
    if key.lstrip("+~") in CHOICES:
        return f"{override}: Hydra cannot read the value {value}; name one option, or several for -m, such as {key}=A,B"
    typed = None if _SWEEP.match(value) else advice(override)
    if typed is None:
        return f"{override}: Hydra cannot read the value {value}; quote the texts in it, or set {key} in a YAML file"
    return f"{override}: the value needs quotes, for Hydra and for the shell: type {typed}"


def advice(override: str) -> str | None:
    """The override as it must be typed in a shell, with quotes around its value, or around each element of a list; None
    if they are not enough."""
    key, _, value = override.partition("=")
    listed = re.fullmatch(r"\[([^\[\]{}'\"]*)\]", value)
    texts = [text.strip() for text in listed[1].split(",")] if listed else [value]
    values = ",".join(map(quoted, texts))
    typed = f"{key}=[{values}]" if listed else f"{key}={values}"
    try:
        OverridesParser.create().parse_override(typed)
    except HydraException:
        return None
    return shlex.quote(typed)


def quoted(text: str) -> str:
    """A text in the quotes of Hydra's grammar."""
    return QuotedString(text.replace("${", r"\${"), Quote.double).with_quotes()
