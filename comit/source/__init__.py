"""What is to be screened: folders, files, objects, or a manifest become a frozen work list."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import BinaryIO

from comit.errors import UsageError
from comit.source.address import DICOMWEB, Stores
from comit.source.base import SHARD, Listing, Selection
from comit.source.inputs import Input
from comit.source.worklist import Writer


def write_worklist(source: Input, to: BinaryIO, files: BinaryIO, selection: Selection) -> Listing:
    """Enumerates ``source`` into the work list ``to`` and the paths to open, ``files``.

    Raises UsageError where there is nothing to screen or the manifest cannot be used.
    """
    from comit.source import dicomweb, folder, manifest, objects

    given = {
        "--pattern": selection.pattern != "*",
        "--exclude": selection.exclude,
        "--include-hidden": selection.include_hidden,
    }
    single = len(source.paths) == 1 and not source.paths[0].is_dir()
    stores = Stores(selection.endpoint, selection.timeout)
    if single and (idle := [name for name, value in given.items() if value]):
        raise UsageError(f"{idle[0]} is for folders, and {source} is none")
    if source.is_manifest:
        return manifest.write(source.paths[0], to, files, selection, stores)
    if selection.root is not None:
        raise UsageError(f"a root is for the paths of a manifest, and {source} is none")
    if selection.keep:
        raise UsageError(f"--keep is for columns of a manifest, and {source} is none")
    left_out: Counter[str] = Counter()
    if source.address is not None and source.address.scheme in DICOMWEB:
        if idle := [name for name, value in given.items() if value]:
            raise UsageError(f"{idle[0]} is for folders and stores; a PACS takes filters")
        server = dicomweb.Server.of(str(source.address))
        items = dicomweb.items(server, stores.dicomweb, selection.identifiers)
    elif source.address is not None:
        items = objects.items(source.address, stores, selection, left_out)
    else:
        items = folder.items(source, selection, left_out)
    with Writer(to, files) as writer:
        while chunk := list(islice(items, SHARD)):
            writer.write(chunk)
    return Listing(dict(left_out.most_common()))
