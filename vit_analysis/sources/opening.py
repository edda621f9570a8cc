"""From the name of a source to the source: which kind it is, and a sentence where there is none."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from vit_analysis.sources import factory, hub
from vit_analysis.sources.decoded import Decoded
from vit_analysis.sources.factory import Factory
from vit_analysis.sources.folder import Folder, Listing, listed
from vit_analysis.sources.hub import Hub
from vit_analysis.sources.lab import Lab
from vit_analysis.sources.names import PARQUET, TAR, ending, is_hidden, is_image, is_packed, left_out
from vit_analysis.sources.parquet import Parquet
from vit_analysis.sources.shards import Shards, is_pattern, matching
from vit_analysis.sources.source import Named
from vit_analysis.sources.splits import refuse_mixed_shards
from vit_analysis.sources.tars import Tars
from vit_analysis.spelling import LONGEST, Refusal, did_you_mean
from vit_analysis.typed import LAB

DRAWN = {LAB: Lab}  # sources that are code, by name: they draw as many images as are asked for
MADE = {factory.PREFIX: Factory, hub.PREFIX: Hub}  # by what their names begin with
STREAMS = ("wds/", "tfds/", "hfids/")
OF_SHARDS = {TAR: Tars, PARQUET: Parquet}


def opened(named: Named) -> Decoded:
    """Open the images of this name.

    Raises:
        FileNotFoundError: there is no such folder or file, or there are no images in it.
        OSError: it, or a part of it, cannot be read.
        Refusal: the name is of a kind that cannot be read by number, or more than one thing could be meant.
    """
    name = named.source
    if not name:
        raise FileNotFoundError("no images at '': name a folder, a tar or 'lab'")
    start = name.partition("/")[0].lower() + "/"
    if start in STREAMS:
        raise Refusal(
            f"{name!r} is a stream, and every model has to see the same images by number; name the tars themselves, as in "
            f"--images.source 'FOLDER/train-{{000..063}}.tar', or a data set as hfds/NAME"
        )
    if start in MADE and "/" in name:
        return MADE[start](named)
    if is_pattern(name) and not _exists(name):
        return _of_pattern(named)
    path = existing(name)
    return _of_folder(path, named) if path.is_dir() else _of_shards([path], named)


def _of_pattern(named: Named) -> Decoded:
    paths = matching(named.source)
    if not paths:
        raise FileNotFoundError(
            f"no images at {named.source!r}: no file has such a name; {_beside(named.source)}"
        )
    return _of_shards(paths, named)


def _of_folder(path: Path, named: Named) -> Decoded:
    listing = listed(path)
    if len(listing.names):
        _refuse_columns(named)
        return Folder(listing, named.source)
    kinds = [kind for kind, own in listing.shards.items() if own]
    if len(kinds) > 1:
        raise Refusal(
            f"{named.source!r} holds {' and '.join(kinds)} files; choose, as in '{path / f'*{kinds[0]}'}'"
        )
    if kinds:
        refuse_mixed_shards(listing.shards[kinds[0]], path, named.source)
        return _of_shards(listing.shards[kinds[0]], named)
    raise FileNotFoundError(f"no images in {named.source!r}: Found 0 images; {_instead(listing, path)}")


def _instead(listing: Listing, path: Path) -> str:
    if ".arrow" in listing.others:
        return f"it holds .arrow files of the library datasets; name it {hub.PREFIX}{path}"
    return left_out(listing.others) if listing.others else "it is empty"


def _of_shards(paths: Sequence[Path], named: Named) -> Decoded:
    kinds = sorted({ending(path.name) for path in paths})
    packed = next((path for path in paths if is_packed(path.name)), None)
    if packed is not None:
        raise Refusal(f"{str(packed)!r} is compressed, and its images cannot be read one by one; unpack it")
    if len(kinds) == 1 and kinds[0] in OF_SHARDS:
        own = OF_SHARDS[kinds[0]]
        return own(Shards(paths), named.source, named.image_column, named.label_column)
    what = (
        "one image"
        if len(paths) == 1 and is_image(paths[0].name)
        else f"files of {', '.join(map(repr, kinds[:4]))}"
    )
    raise FileNotFoundError(
        f"no images in {named.source!r}: it is {what}, and a source is a folder of images, tars or parquet files; "
        f"its folder is {str(paths[0].parent)!r}"
    )


def _refuse_columns(named: Named) -> None:
    if named.image_column or named.label_column:
        raise Refusal(f"{named.source!r} is a folder of images, and has no columns")


def existing(name: str) -> Path:
    """The folder or file of this name.

    Raises:
        FileNotFoundError: there is none; it says what lies beside.
    """
    if "://" in name:
        raise FileNotFoundError(
            f"no images at {name!r}: images are read from disk; download it, and name the folder"
        )
    try:
        path = Path(name).expanduser()
        there = path.exists()
    except (RuntimeError, ValueError) as error:  # the home of an unknown user, or an impossible file name
        raise FileNotFoundError(f"no images at {name!r}: {error}") from error
    except OSError as error:
        raise OSError(f"cannot read {name!r}: {error.strerror}") from error
    if not there:
        raise FileNotFoundError(f"no images at {name!r}; {_beside(name)}")
    return path


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (RuntimeError, ValueError, OSError):
        return False


def _beside(name: str) -> str:
    """What a name was probably meant to be: what lies beside it, or the first folder above that is missing."""
    near = get_close_matches(name[:LONGEST], [*DRAWN, *(factory.PREFIX + own for own in factory.HOLDS)], n=1)
    if not near and (own := factory.PREFIX + name.lower()).removeprefix(factory.PREFIX) in factory.HOLDS:
        near = [own]
    path = Path(name).expanduser()
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    missing = f"there is no folder {str(path)!r}: " if path != Path(name).expanduser() else ""
    try:
        siblings = sorted(own.name for own in path.parent.iterdir() if not is_hidden(own.name))
    except OSError:
        siblings = []
    return missing + did_you_mean(str(path), [*near, *(str(path.parent / own) for own in siblings)])
