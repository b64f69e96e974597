"""Structs that Python hands to C++ lie in memory as C++ has them: what both sides must agree on, and how it is checked.

A struct of the device code is mirrored by a `ctypes.Structure` with the same names. nvcc, g++ and NVRTC alike are given the
device code together with a `statement` of the mirror, which does not compile where a field is elsewhere, of another size, or
missing on either side. An object that is kept carries the `record` of what was stated when it was built: loading compares it with
the mirrors at hand, which may be newer. A field of a mirror whose name begins with an underscore stands for padding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple


class Field(NamedTuple):
    """A field of a struct, or of a struct within it: "shape", "shape.N"; of structs in an array, those of the first."""

    name: str
    offset: int  # from the outermost struct's begin
    size: int
    members: tuple[str, ...] | None = None  # of a struct, their own names


def _members(structure: Any) -> tuple[str, ...]:
    return tuple(name for name, *_ in structure._fields_ if not name.startswith("_"))


def _inner(structure: Any, prefix: str, start: int) -> Iterator[Field]:
    types = {name: type_ for name, type_, *_ in structure._fields_}
    for member in _members(structure):
        type_, name, offset = types[member], prefix + member, start + getattr(structure, member).offset
        if issubclass(type_, ctypes.Array) and issubclass(type_._type_, ctypes.Structure):
            yield Field(name, offset, ctypes.sizeof(type_))
            type_, name = type_._type_, f"{name}[0]"
        if issubclass(type_, ctypes.Structure):
            yield Field(name, offset, ctypes.sizeof(type_), _members(type_))
            yield from _inner(type_, f"{name}.", offset)
        else:
            yield Field(name, offset, ctypes.sizeof(type_))


def fields(structure: type[ctypes.Structure]) -> list[Field]:
    """Every field of a mirror, those of inner structs after the struct."""
    return list(_inner(structure, "", 0))


@cache
def record(name: str, structure: type[ctypes.Structure]) -> str:
    """One line: of each field its name, offset and size; the struct's own size last."""
    entries = [f"{field.name} {field.offset} {field.size}" for field in fields(structure)]
    return "; ".join([*entries, f"{name} 0 {ctypes.sizeof(structure)}"])


def _same(offset: str, value: str, label: str, field: Field) -> str:
    numbers = f"{offset}, sizeof {value}, {field.offset}, {field.size}"
    place = _place((field.offset, field.size))
    return f'  static_assert(SameField<{numbers}>::value, "{label} is {place} in Python");'


def statement(function: str, name: str, structure: type[ctypes.Structure]) -> str:
    """C++: a function template that compiles for a struct, its argument, if that is laid out like its mirror in Python."""
    lines = [
        "template <class Struct>",
        f"__device__ constexpr auto {function}(const Struct& whole) {{",
    ]
    for field in fields(structure):
        lines.append(_same(f"__builtin_offsetof(Struct, {field.name})", f"whole.{field.name}", f"{name}.{field.name}", field))
    whole = Field(name, 0, ctypes.sizeof(structure), _members(structure))
    lines.append(_same("0", "whole", name, whole))
    for field in (whole, *fields(structure)):
        value = "whole" if field is whole else f"whole.{field.name}"
        if field.members:  # does not compile for a struct of more members, or fewer
            lines.append(f"  {{ [[maybe_unused]] const auto& [{', '.join(field.members)}] = {value}; }}")
        elif field.members is not None:
            lines.append(f'  static_assert(__is_empty(decltype({value})), "{name}.{field.name} has no members in Python");')
    return "\n".join([*lines, "  return 0;", "}"])


def difference(recorded: str, name: str, structure: type[ctypes.Structure]) -> str | None:
    """The first field that an object's record and a mirror do not agree on, in words; None if they agree."""
    if recorded == record(name, structure):
        return None
    theirs, ours = _parse(recorded), _parse(record(name, structure))
    differing = [field for field in (*theirs, *ours) if theirs.get(field) != ours.get(field)]
    first = min(differing, key=lambda field: (field == name, (theirs.get(field) or ours[field])[0]))
    label = name if first == name else f"{name}.{first}"
    return f"{label} is {_place(theirs.get(first))} in the object, and {_place(ours.get(first))} in Python"


def _parse(recorded: str) -> dict[str, tuple[int, int]]:
    entries = (entry.split() for entry in recorded.split("; ") if entry)
    return {name: (int(offset), int(size)) for name, offset, size in entries}


def _place(place: tuple[int, int] | None) -> str:
    return "missing" if place is None else f"at offset {place[0]} with {place[1]} bytes"
