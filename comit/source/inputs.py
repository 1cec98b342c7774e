"""What is screened: folders, files, a manifest, or what an address names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from comit.errors import UsageError
from comit.results import STAGING
from comit.source.address import Address, is_address


@dataclass(frozen=True)
class Input:
    """What is screened: a folder, an image or a manifest, or several folders and files.

    ``root`` is the folder that names are relative to: a single folder itself, else the deepest
    folder that all inputs lie in. With an ``address`` there are no paths, and names are relative to
    it. Raises UsageError where one is not there or cannot be an input.
    """

    paths: tuple[Path, ...]
    address: Address | None = None
    root: Path = field(init=False)
    is_manifest: bool = field(init=False)

    @staticmethod
    def of(source: Path | str | Sequence[Path | str]) -> Input:
        """One input, or several."""
        given = [source] if isinstance(source, Path | str) else [*source]
        if addresses := [text for text in given if isinstance(text, str) and is_address(text)]:
            if len(given) > 1:
                raise UsageError(
                    "an address is screened alone; a manifest may name addresses and files"
                )
            return Input((), Address.of(addresses[0]))
        return Input(tuple(map(Path, given)))

    def __post_init__(self) -> None:
        from comit.source.manifest import is_manifest

        if self.address is not None:
            object.__setattr__(self, "is_manifest", False)
            return
        if not self.paths:
            raise UsageError("nothing to screen: name a folder, images or a manifest")
        for path in self.paths:
            if not path.exists():
                raise UsageError(f"{path} does not exist; give a folder, an image or a manifest")
            if (path / STAGING).is_dir():
                raise UsageError(
                    f"{path} holds results of comit; give the folder or the manifest that was "
                    "screened"
                )
        manifests = [p for p in self.paths if p.is_file() and is_manifest(p)]
        if manifests and len(self.paths) > 1:
            raise UsageError(f"{manifests[0]} is a table; give a manifest without other inputs")
        object.__setattr__(self, "is_manifest", bool(manifests))
        if len(self.paths) == 1:
            (path,) = self.paths
            object.__setattr__(self, "root", path if path.is_dir() else path.parent)
            return
        paths = [Path(os.path.abspath(p)) for p in self.paths]  # noqa: PTH100 (links stay)
        folders = {p for p in paths if p.is_dir()}
        apart = sorted({p for p in paths if folders.isdisjoint(p.parents)}, key=os.fsencode)
        object.__setattr__(self, "paths", tuple(apart))
        above = Path(os.path.commonpath([p.parent for p in paths]))
        object.__setattr__(self, "root", above)

    def __str__(self) -> str:
        if self.address is not None:
            return self.address.place
        return str(self.paths[0]) if len(self.paths) == 1 else f"{len(self.paths)} inputs"

    def described(self) -> bytes:
        """What tells one input from another."""
        if self.address is not None:
            return str(self.address).encode()
        if len(self.paths) == 1:
            return os.fsencode(self.paths[0].resolve())
        names = b"\0".join(map(os.fsencode, self.paths))
        digest = hashlib.blake2b(names, digest_size=8).hexdigest()
        return b"%s (%d inputs, %s)" % (
            os.fsencode(self.root.resolve()),
            len(self.paths),
            digest.encode(),
        )

    def place(self, root: Path | None = None) -> bytes:
        """What names are relative to: a folder, ``root`` of a manifest, or the address."""
        if self.address is not None:
            return str(self.address).encode()
        return os.fsencode((root or self.root).resolve())
