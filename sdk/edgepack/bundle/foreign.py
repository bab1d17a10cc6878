"""What desktops, archives and file systems leave in folders that are not theirs: no reader of a bundle looks at it.

The names are those that GitHub's templates for macOS, Windows and Linux ignore, as far as they come by themselves, and
those of the headers that a tar without knowledge of pax unpacks as files.
"""

from __future__ import annotations

import re

_FILES = re.compile(
    r"\.DS_Store|\._.+|\.localized|Icon\r|\.LSOverride|\.VolumeIcon\.icns|\.com\.apple\.timemachine\.donotpresent"
    r"|Thumbs\.db|ehthumbs(?:_vista)?\.db|desktop\.ini"
    r"|\.directory|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+",
    re.IGNORECASE,
)
_FOLDERS = re.compile(
    r"__MACOSX|\.AppleDouble|\.(?:Spotlight|DocumentRevisions)-V100|\.fseventsd|\.TemporaryItems|\.Trashes"
    r"|\$RECYCLE\.BIN|System Volume Information|lost\+found|\.Trash-\d+|@eaDir|PaxHeaders(?:\.\d+)?",
    re.IGNORECASE,
)


def foreign(name: str, folder: bool) -> bool:
    """Say whether a file or a folder of this name is none of the bundle's, and does it no harm."""
    return bool((_FOLDERS if folder else _FILES).fullmatch(name))
