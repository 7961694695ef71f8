"""Read and write dataclasses as JSON objects. The keys are the names of the fields.

Reading checks every value against the annotation of its field. The metadata of a field may say more:

    key       the key in the object, if it is not the name of the field
    inline    the value is an object whose keys are at the same level as those of the other fields
    rest      the value is an object of all keys that no other field has
    omit      the field is left out while it has its default
    pattern   a compiled regular expression that the complete text must match
    choices   the values that are allowed
    least     the smallest number that is allowed
    read      a function that reads the value itself, and raises Malformed
    write     a function that returns the value as JSON

A class may have an attribute `json_head`: constant keys that precede its fields. Unknown keys are ignored, and null
counts as missing if the field has a default. So either side may be newer than the other.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    Type,
    TypeVar,
    Union,
    get_type_hints,
)

from remote.contract.files import JsonObject

T = TypeVar("T")

MAX_TEXT = 4096  # characters of a text that the other side reports
FAR = 1e12  # seconds, or any other float: all valid ones are smaller
INTEGER_LIMIT = 2**63  # any integer is smaller


class Malformed(ValueError):
    """A value does not have the declared type. `field` is its dotted name, "" for the complete value."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"`{field}` must be {expected}" if field else f"must be {expected}")
        self.field, self.expected = field, expected


class _How(NamedTuple):
    longest: Optional[int]  # characters of a text
    problems: Optional[List[str]]  # None: raise the first problem


_Read = Callable[[Any, _How], Any]


def to_json(value: Any) -> Any:
    """Return `value`, a dataclass or the value of a field, as JSON objects, lists and plain values."""
    if is_dataclass(value):
        return _fields_to_json(value)
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def _fields_to_json(value: Any) -> JsonObject:
    found = dict(getattr(value, "json_head", ()))
    rest = {}
    for item in fields(value):
        held, metadata = getattr(value, item.name), item.metadata
        if metadata.get("omit") and held == item.default:
            continue
        written = metadata.get("write", to_json)(held)
        if metadata.get("inline"):
            found.update(written)
        elif metadata.get("rest"):
            rest = written
        else:
            found[metadata.get("key", item.name)] = written
    return {**rest, **found}


def from_json(kind: Type[T], value: Any, problems: Optional[List[str]] = None, longest: Optional[int] = MAX_TEXT) -> T:
    """Return `value`, a JSON object, as the dataclass `kind`.

    Args:
        kind: The dataclass.
        value: What the other side sent, of any type.
        problems: The names of malformed fields are appended to it, and these fields have their defaults. If it is None,
            the first malformed field is an error.
        longest: The most characters of a text; None for no limit.

    Raises:
        Malformed: A field is malformed and has no default (or `problems` is None), or `value` is not an object.
    """
    result: T = _read_dataclass(kind, value, _How(longest, problems))
    return result


def is_text(value: Any) -> bool:
    """Return whether `value` is a text without NUL, which paths, command lines and environments cannot contain."""
    return isinstance(value, str) and "\0" not in value


def _read_dataclass(kind: Type[Any], value: Any, how: _How) -> Any:
    if not isinstance(value, dict):
        raise Malformed("", "an object")
    found = {}
    for field in _field_readers(kind):
        item = field.take(value)
        if item is None and not field.is_required:
            continue
        try:
            found[field.name] = field.read(item, how)
        except Malformed as error:
            if how.problems is None or field.is_required:
                place = ".".join(filter(None, (field.key, error.field)))
                raise Malformed(place, error.expected) from None
            how.problems.append(field.key)
    return kind(**found)


class _FieldReader(NamedTuple):
    name: str
    key: str  # "" if the field is inline
    is_required: bool  # it has no default
    take: Callable[[JsonObject], Any]  # picks the field's value out of the object
    read: _Read


_known_readers: Dict[type, List[_FieldReader]] = {}


def _field_readers(kind: Type[Any]) -> List[_FieldReader]:
    if kind not in _known_readers:
        hints = get_type_hints(kind)
        own = [item for item in fields(kind) if not (item.metadata.get("inline") or item.metadata.get("rest"))]
        keys = {*getattr(kind, "json_head", ()), *(item.metadata.get("key", item.name) for item in own)}
        _known_readers[kind] = [_field_reader(hints[item.name], item, keys) for item in fields(kind)]
    return _known_readers[kind]


def _field_reader(annotation: Any, item: Field[Any], keys: Set[str]) -> _FieldReader:
    is_required = item.default is MISSING and item.default_factory is MISSING
    read, key = _value_reader(annotation, item), item.metadata.get("key", item.name)
    if item.metadata.get("inline"):
        return _FieldReader(item.name, "", is_required, lambda value: value, read)
    if item.metadata.get("rest"):
        return _FieldReader(item.name, "", is_required, lambda value: _without(keys, value), read)
    return _FieldReader(item.name, key, is_required, lambda value: value.get(key), read)


def _without(keys: Set[str], value: JsonObject) -> JsonObject:
    return {name: held for name, held in value.items() if name not in keys}


def _value_reader(annotation: Any, item: Field[Any]) -> _Read:
    metadata = item.metadata
    if "read" in metadata:
        own = metadata["read"]
        return lambda value, how: own(value)
    read = _reader(annotation)
    pattern, choices, least = metadata.get("pattern"), metadata.get("choices"), metadata.get("least")

    def narrowed(value: Any, how: _How) -> Any:
        found = read(value, how)
        if pattern is not None and not pattern.fullmatch(found):
            raise Malformed("", f"text like {pattern.pattern}")
        if choices is not None and found not in choices:
            raise Malformed("", "one of " + ", ".join(map(str, choices)))
        if least is not None and found < least:
            raise Malformed("", f"{least} or more")
        return found

    return read if pattern is choices is least is None else narrowed


def _reader(annotation: Any) -> _Read:
    origin: Any = getattr(annotation, "__origin__", None)
    arguments: Tuple[Any, ...] = getattr(annotation, "__args__", ())
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    # Optional[X] or X | None; other unions are not supported.
    if origin is Union or type(annotation).__name__ == "UnionType":
        [inner] = [_reader(argument) for argument in arguments if argument is not type(None)]
        return lambda value, how: None if value is None else inner(value, how)
    if origin is list or (origin is tuple and arguments[-1] is ...):
        return _list_reader(_reader(arguments[0]), list if origin is list else tuple)
    if origin is tuple:
        return _tuple_reader([_reader(argument) for argument in arguments])
    if origin is dict:
        return _dict_reader(_reader(arguments[1]))
    return lambda value, how: _read_dataclass(annotation, value, how)


def _list_reader(read: _Read, kind: Callable[[List[Any]], Any]) -> _Read:
    def read_list(value: Any, how: _How) -> Any:
        if not isinstance(value, list):
            raise Malformed("", "a list")
        return kind([_item(read, item, how, str(place)) for place, item in enumerate(value)])

    return read_list


def _tuple_reader(reads: List[_Read]) -> _Read:
    def read_tuple(value: Any, how: _How) -> Any:
        if not isinstance(value, list) or len(value) != len(reads):
            raise Malformed("", f"a list of {len(reads)} values")
        return tuple(_item(read, item, how, str(place)) for place, (read, item) in enumerate(zip(reads, value)))

    return read_tuple


def _dict_reader(read: _Read) -> _Read:
    def read_dict(value: Any, how: _How) -> Any:
        if not isinstance(value, dict):
            raise Malformed("", "an object")
        return {_text(key, how): _item(read, item, how, key) for key, item in value.items()}

    return read_dict


def _item(read: _Read, value: Any, how: _How, place: str) -> Any:
    """Read an item of a list or an object. A malformed item makes the complete list or object malformed."""
    try:
        return read(value, how._replace(problems=None))
    except Malformed as error:
        raise Malformed(f"{place}.{error.field}" if error.field else place, error.expected) from None


def _text(value: Any, how: _How) -> str:
    is_strict = how.problems is None  # else the text is only displayed, with NUL made visible
    if not (is_text(value) if is_strict else isinstance(value, str)):
        raise Malformed("", "text")
    if how.longest is not None and len(value) > how.longest:
        raise Malformed("", f"text of at most {how.longest} characters")
    return str(value)


def _integer(value: Any, how: _How) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -INTEGER_LIMIT < value < INTEGER_LIMIT:
        raise Malformed("", "an integer")
    return value


def _number(value: Any, how: _How) -> float:
    # `not <` also refuses NaN; math.isfinite would raise OverflowError for an integer of 400 digits.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < FAR:
        raise Malformed("", "a number")
    return value


def _flag(value: Any, how: _How) -> bool:
    if not isinstance(value, bool):
        raise Malformed("", "true or false")
    return value


def _anything(value: Any, how: _How) -> Any:
    return value


_PLAIN: Dict[Any, _Read] = {str: _text, int: _integer, float: _number, bool: _flag, Any: _anything}
