"""The objects below an address, every one an item, in the order of their keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from comit.errors import ItemError, UsageError
from comit.reasons import Fail
from comit.source.address import LISTED, Address, Found, Stores
from comit.source.base import Item, Selection
from comit.source.folder import fits, shown_rule
from comit.source.leave_out import LeaveOut


def items(
    address: Address, stores: Stores, selection: Selection, left_out: Counter[str]
) -> Iterator[Item]:
    """Yields an item for each object below ``address`` that the selection takes, as of a folder.

    Names are relative to the address. An address of one object is that item, whatever its name.
    What stores make to show an empty folder is no item. Raises UsageError where there is none.
    """
    if address.key and not address.key.endswith("/"):
        try:
            found = stores.look(address)
        except ItemError as error:
            if address.scheme not in LISTED:
                raise UsageError(
                    f"the address of {address.place} cannot be read: {error.reason.meaning}"
                ) from None
        else:
            yield _item(address, address.key.rpartition("/")[2], found, selection)
            return
    prefix = address.key.rstrip("/") + "/" if address.key else ""
    rules = LeaveOut(selection.exclude, not selection.include_hidden)
    outside: str | None = None  # a folder that is left out
    taken = False

    def taking(found: Found) -> Iterator[Item]:
        nonlocal outside, taken
        name = found.key[len(prefix) :]
        if outside is not None and name.startswith(outside):
            return
        parts = name.split("/")
        for n in range(1, len(parts) + 1):
            part = "/".join(parts[:n])
            if rule := rules.rule(part, folder=n < len(parts)):
                left_out[shown_rule(rule, selection)] += 1
                outside = part + "/" if n < len(parts) else None
                return
        if fits(parts[-1], selection.pattern):
            taken = True
            yield _item(address, name, found, selection)

    for found in stores.list(address):
        if found.key.startswith(prefix) and not _is_folder(found, address, stores):
            yield from taking(found)
    if not taken:
        matching = "" if selection.pattern == "*" else f" that match {selection.pattern!r}"
        rules_said = f" ({left_out.total():,} left out: {', '.join(left_out)})" if left_out else ""
        raise UsageError(f"{address.place} holds no objects there{matching}{rules_said}")


def _is_folder(found: Found, address: Address, stores: Stores) -> bool:
    """Whether an object is none, but what a console makes to show a folder: ``KEY/`` without bytes.

    It is listed as ``KEY``, and there is no object of that name.
    """
    if found.size:
        return False
    try:
        stores.look(replace(address, key=found.key))
    except ItemError as error:
        return error.reason is Fail.NOT_FOUND
    return False


def _item(address: Address, name: str, found: Found, selection: Selection) -> Item:
    raw, names = name.encode(), selection.identifiers
    file = f"{address.place}/{found.key}" if address.scheme in LISTED else str(address)
    return Item(
        names.row_id(raw),
        names.path(raw),
        file.encode(),
        names.text(raw),
        found.size,
        found.mtime,
    )
