"""Answers to options that do not exist: what was probably meant, in a few plain lines.

What lives here: the options that a config has, those that are closest to a word, and the classes
that may stand in a field. What does not: parsing (`command_line.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

from seva_jax.config.source import public_name
from seva_jax.data import PromptSource

_FILLERS = re.compile("(?:an?|and|as|at|by|for|from|if|in|its?|is|of|on|or|per|that|the|to|type)$")
_LEAST = 0.3  # score of a suggestion
_MOST = 3  # suggestions for one option
_GROUP = object()  # the value of a section among options
PUBLISHED = "llava15_7b_seva"  # the shipped config whose options are looked through next


class Option(NamedTuple):
    """An option of the command line.

    Attributes:
        name: as it is typed, without the dashes in front, such as "optim.lr".
        about: its help.
        around: the help of the sections that it is in.
        value: what it is now; None for an option that is not a field.
        config: the shipped config that has the option; empty for the one that is used.
    """

    name: str
    about: str = ""
    around: str = ""
    value: Any = None
    config: str = ""

    def line(self) -> str:
        """Returns the option with the beginning of its help and its value."""
        chosen = f"--config {self.config} " if self.config else ""
        about = f": {_beginning(self.about)}" if self.about else ""
        now = "" if self.value is None else f" (now {self.value!r})"
        return f"{chosen}--{self.name}{about}{now}"


class Section(NamedTuple):
    """A field of a config that holds a dataclass, or several.

    Attributes:
        name: dotted name, such as "objective".
        base: the class that the field is declared with.
        values: what it holds now.
        several: whether the field is a tuple.
    """

    name: str
    base: type
    values: tuple[Any, ...]
    several: bool


def options_of(config: Any, prefix: str = "", around: str = "") -> Iterator[Option]:
    """Yields the options that change the fields of a config, or of the value of a field."""
    about = _about(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name.replace('_', '-')}"
        inner = {name: value} if dataclasses.is_dataclass(value) else {}
        if isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            inner = {f"{name}.{index}": item for index, item in enumerate(value)}
        text = about.get(field.name, "")
        for part, item in inner.items():
            yield from options_of(item, f"{part}.", f"{around} {_beginning(text)}")
        if not inner:
            yield Option(name, text, around, value)


def sections_of(config: Any, prefix: str = "") -> Iterator[Section]:
    """Yields the fields of a config that hold dataclasses, at every depth."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        name = f"{prefix}{field.name.replace('_', '-')}"
        several = typing.get_origin(hint) is tuple
        base = typing.get_args(hint)[0] if several else hint
        if not isinstance(base, type) or not dataclasses.is_dataclass(base):
            continue
        values = tuple(value) if several else (value,)
        yield Section(name, base, values, several)
        for index, item in enumerate(values):
            if dataclasses.is_dataclass(item):
                yield from sections_of(item, f"{name}.{index}." if several else f"{name}.")


def closest(wanted: str, options: Iterable[Option]) -> list[Option]:
    """Returns the options that a word probably means, the most likely one first.

    An option is meant if its last part is the same (`--lr`), if it is spelled nearly the same, or
    if its name and its help have the words of the wanted one (`--learning_rate`).

    Args:
        wanted: what was typed, without the dashes in front.
        options: all that exist.
    """
    wanted, options = wanted.lower().replace("_", "-"), list(options)
    texts = [_words(f"{x.name} {_beginning(x.about)}") for x in options]
    weights: dict[str, float] = {}  # a word that many options have says less
    for word in _words(wanted):
        count = sum(any(_alike(word, other) for other in text) for text in texts)
        weights[word] = 1 / (1 + math.log(count)) if count else 0.3
    scored = [(_score(wanted, weights, x) * (0.9 if x.config else 1), x) for x in options]
    # Of equal ones, a field comes before one of several items, and before one further inside.
    numbered = re.compile(r"\.[0-9]+\.")
    scored.sort(key=lambda x: (-x[0], bool(numbered.search(x[1].name)), x[1].name.count(".")))
    least = max(_LEAST, 0.85 * scored[0][0])
    near: dict[str, Option] = {}
    for score, option in scored:
        if score >= least:  # one of --evals.0.name, --evals.1.name, ...
            near.setdefault(re.sub("[0-9]+", "N", option.name), option)
    return list(near.values())[:_MOST]


def _score(wanted: str, weights: Mapping[str, float], option: Option) -> float:
    """Returns how likely an option is meant: 2 and more for the same last part, else up to 1.9."""
    section, _, leaf = wanted.rpartition(".")
    own_section, _, own_leaf = option.name.rpartition(".")
    if leaf in (own_leaf, f"no-{own_leaf}"):
        return 2 + 0.1 * difflib.SequenceMatcher(None, section, own_section).ratio()
    spelled = difflib.SequenceMatcher(None, wanted, option.name).ratio()
    if not section:
        spelled = max(spelled, difflib.SequenceMatcher(None, leaf, own_leaf).ratio())
    if spelled >= 0.8:
        return 0.9 + spelled
    names, about = _words(own_leaf), _words(_beginning(option.about))
    places = ((names, 1.0), (_words(own_section), 0.8), (about, 0.6), (_words(option.around), 0.3))
    told = sum(
        weight * max(worth * any(_alike(word, x) for x in place) for place, worth in places)
        for word, weight in weights.items()
    )
    meant = max(_share(names, weights), _share(about, weights))
    return told / max(sum(weights.values()), 1e-9) * (0.6 + 0.4 * meant)


def _share(words: Sequence[str], others: Iterable[str]) -> float:
    """Returns the share of words that are among the others."""
    return sum(any(_alike(x, y) for y in others) for x in words) / max(len(words), 1)


def _words(text: str) -> list[str]:
    return [x for x in re.findall("[a-z0-9]+", text.lower()) if not _FILLERS.match(x)]


def _alike(word: str, other: str) -> bool:
    """Returns whether two words are equal, or one begins with the other ("dir", "directory")."""
    shorter, longer = sorted((word, other), key=len)
    return word == other or (len(shorter) >= 3 and longer.startswith(shorter))


def _beginning(text: str) -> str:
    """Returns what a help text says first, up to the first stop, colon or semicolon."""
    return textwrap.shorten(re.split(r"[.;:](?:\s|$)", text)[0], 90, placeholder=" ...")


def _about(kind: type) -> dict[str, str]:
    """Returns the help of the fields of a dataclass, from the docstrings of it and its bases."""
    about: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        about |= re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", doc, re.MULTILINE)
    return about


def choices(base: type) -> dict[str, type | FunctionType]:
    """Returns what may stand in a field, by name: subclasses of its class, and recipes.

    Recipes are functions exported beside the class that make one without arguments, as `moco` does.

    Args:
        base: the class that the field is declared with.
    """
    import seva_jax.evals.suites  # noqa: F401  # defines subclasses that a run may not import

    known: dict[str, type | FunctionType] = {
        kind.__name__: kind
        for kind in _subclasses(base)
        if not (kind.__doc__ or "").startswith("Base class") and _is_exported(kind)
    }
    for name, thing in vars(sys.modules[public_name(base)[0]]).items():
        if isinstance(thing, FunctionType) and not thing.__code__.co_argcount:
            made = typing.get_type_hints(thing).get("return")
            if isinstance(made, type) and issubclass(made, base):
                known[name] = thing
    return dict(sorted(known.items(), key=lambda item: item[0].lower()))


def _is_exported(kind: type) -> bool:
    """Returns whether a package shows a class among its public names."""
    return hasattr(sys.modules.get(public_name(kind)[0]), "__path__")


def _subclasses(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from _subclasses(kind)


def answer(
    unknown: str, value: str, config: Any, others: Iterable[Option] = (), published: Any = None
) -> str:
    """Returns what to type or write in place of an option that does not exist.

    Args:
        unknown: the option as it was typed; empty for a value that belongs to no option.
        value: what followed it; may be empty.
        config: the config whose fields are options.
        others: options that are not fields of it.
        published: the config of the published run, for options that only it has; None for a
            command that takes no run.
    """
    if not unknown:
        hint = f"; --config {value} chooses a config" if value.endswith(".py") else ""
        return f"{value!r} belongs to no option{hint}"
    name = unknown.lstrip("-").replace("_", "-")
    sections = {section.name: section for section in sections_of(config)}
    if name in sections:
        return _about_section(unknown, value, sections[name], published)
    above, _, field = name.rpartition(".")
    if above in sections and (owners := _owners(sections[above], field)):
        return _about_owners(unknown, value, sections[above], owners, published)
    own = list(options_of(config))
    about = _about(type(config))
    groups = [Option(name, about[name], value=_GROUP) for name in sections if name in about]
    names = {option.name for option in own}
    more = options_of(published) if published else ()
    more = [x._replace(config=PUBLISHED) for x in more if x.name not in names]
    near = closest(name, [*own, *others, *groups, *more])
    if near and near[0].value is _GROUP:
        group = sections[near[0].name]
        instead = _about_section(f"--{group.name}", value, group, published)
        return f"there is no option {unknown}; {instead}"
    if near:
        return f"there is no option {unknown}; did you mean\n  " + "\n  ".join(
            option.line() for option in near if option.value is not _GROUP
        )
    first = re.split("[.-]", name)[0]
    if first in sections:
        return f"there is no option {unknown}; {_options_line(sections[first])}"
    return f"there is no option {unknown}"


def _about_section(unknown: str, value: str, section: Section, published: Any) -> str:
    """Returns how a section is changed: by its options, or by another class in the config file."""
    known = choices(section.base)
    own = [f"--{x.name}" for v in section.values for x in options_of(v, f"{section.name}.")]
    lower = {name.lower(): name for name in known}
    wanted = re.sub(r"\W|_", "", value.lower())
    similar = difflib.get_close_matches(wanted, lower, 1, 0.8)
    similar += [name for name in lower if len(wanted) >= 3 and name.startswith(wanted)]
    if not similar and value and f"{unknown}.path" in own:
        return f"{unknown} is a group of options; did you mean {unknown}.path {value}"
    if not similar and value and len(owners := _owners(section, "path")) == 1:
        return _about_owners(f"{unknown}.path", value, section, owners, published)
    if not known:
        return _options_line(section)
    name = lower[similar[0]] if similar else type(section.values[0]).__name__
    name = name if name in known else next(iter(known))
    hint = ""
    if issubclass(section.base, PromptSource):
        hint = "\nthe command `data check FILE` says which one reads a file"
    return (
        f"{unknown} {value}: classes are chosen in the config file, not by options; write there\n"
        f"  from {public_name(known[name])[0]} import {name}\n"
        f"  {_line(section, name)}\n"
        f"classes: {', '.join(known)}{hint}"
    )


def _options_line(section: Section) -> str:
    names = [f"--{x.name}" for v in section.values for x in options_of(v, f"{section.name}.")]
    return f"the options of {section.name} are {', '.join(names) or 'none'}"


def _about_owners(
    unknown: str, value: str, section: Section, owners: Sequence[str], published: Any
) -> str:
    """Returns how to get an option of a class that the config does not have."""
    option = unknown.lstrip("-").replace("_", "-")
    present = ", ".join(type(x).__name__ for x in section.values) or "empty"
    given = f"{unknown} {value}".rstrip()
    has_it = any(x.name == option for x in options_of(published))
    such = f"take one that has it (--config {PUBLISHED} {given}), or " if has_it else ""
    field = option.rpartition(".")[2].replace("-", "_")
    return (
        f"{unknown} is an option of {' and '.join(owners)}, but {section.name} is {present} in "
        f"this config; {such}write {_line(section, owners[0], f'{field}={value!r}')} into it"
    )


def _owners(section: Section, field: str) -> list[str]:
    """Returns the classes that could stand in a section and have a field, by their names."""
    field = field.replace("-", "_")
    return [
        name
        for name, kind in choices(section.base).items()
        if isinstance(kind, type) and field in {x.name for x in dataclasses.fields(kind)}
    ]


def _line(section: Section, name: str, arguments: str = "") -> str:
    """Returns the argument of a config that puts an instance of a class into a section."""
    field = section.name.rpartition(".")[2].replace("-", "_")
    return f"{field}=({name}({arguments}),)" if section.several else f"{field}={name}({arguments})"
