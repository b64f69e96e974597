"""Checks that the structs that Python passes to C++ have the same memory layout on both sides.

Each such struct of the device code has a mirror, a `ctypes.Structure` whose fields have the same names. nvcc, g++ and NVRTC
compile the device code together with a check (`statement`) that fails to compile if a field has another offset or size in the
mirror, or is missing on either side. A built object contains the `record` of the mirrors that it was compiled with; when it is
loaded, the record is compared with the current mirrors, which may be newer. A field of a mirror is padding if its name begins
with an underscore.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple


class Field(NamedTuple):
    """A field of a struct or of a struct within it, such as "shape" or "shape.N".

    Of an array of structs, only the fields of the first element are listed, such as "images[0].map".
    """

    name: str
    offset: int  # in bytes from the start of the outermost struct
    size: int  # in bytes
    members: tuple[str, ...] | None = None  # if the field is itself a struct, the names of its fields


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
    """The fields of a mirror, except padding; the fields of an inner struct follow the entry of that struct."""
    return list(_inner(structure, "", 0))


@cache
def record(name: str, structure: type[ctypes.Structure]) -> str:
    """One line with the name, offset and size of each field, and finally the size of the struct."""
    entries = [f"{field.name} {field.offset} {field.size}" for field in fields(structure)]
    return "; ".join([*entries, f"{name} 0 {ctypes.sizeof(structure)}"])


def _same(offset: str, value: str, label: str, field: Field) -> str:
    numbers = f"{offset}, sizeof {value}, {field.offset}, {field.size}"
    where = _where((field.offset, field.size))
    return f'  static_assert(SameField<{numbers}>::value, "{label} is {where} in Python");'


def statement(function: str, name: str, structure: type[ctypes.Structure]) -> str:
    """A C++ function template that can be instantiated only with a struct that is laid out like the mirror `structure`."""
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
        if field.members:  # a structured binding compiles only with the right number of members
            lines.append(f"  {{ [[maybe_unused]] const auto& [{', '.join(field.members)}] = {value}; }}")
        elif field.members is not None:
            lines.append(f'  static_assert(__is_empty(decltype({value})), "{name}.{field.name} has no members in Python");')
    return "\n".join([*lines, "  return 0;", "}"])


def difference(recorded: str, name: str, structure: type[ctypes.Structure]) -> str | None:
    """A sentence about the first field in which an object's record differs from the mirror's; None if they agree."""
    if recorded == record(name, structure):
        return None
    theirs, ours = _parse(recorded), _parse(record(name, structure))
    differing = [field for field in (*theirs, *ours) if theirs.get(field) != ours.get(field)]
    first = min(differing, key=lambda field: (field == name, (theirs.get(field) or ours[field])[0]))
    label = name if first == name else f"{name}.{first}"
    return f"{label} is {_where(theirs.get(first))} in the object, and {_where(ours.get(first))} in Python"


def _parse(recorded: str) -> dict[str, tuple[int, int]]:
    entries = (entry.split() for entry in recorded.split("; ") if entry)
    return {name: (int(offset), int(size)) for name, offset, size in entries}


def _where(offset_and_size: tuple[int, int] | None) -> str:
    return "missing" if offset_and_size is None else "at offset {} with {} bytes".format(*offset_and_size)
