"""The pool and its demonstrations without the studies whose images turned out to be broken when they were decoded.

Files are looked at when studies are selected, but only decoding shows that an image is damaged inside. It happens once
for a pool, in ``cache_vision``, long after demonstrations were drawn. What it finds is written beside the features, and
every job that uses them asks here, so that all methods train on, are shown and are scored on the same studies. Decoding
does not depend on a backbone, and neither does what is left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dive.files import DataError, read_json

UNREADABLE = "unreadable.json"
"""File in a folder of vision features: ``decoded`` (images), ``images`` (study_uid, path, problem of each
that cannot be decoded) and ``studies`` (those without any image left)."""


def studies_left_out(vision: str | Path | None) -> set[str]:
    """Studies without a readable image, by the folder of vision features; none where no folder is given."""
    path = Path(vision) / UNREADABLE if vision else None
    return set(read_json(path)["studies"]) if path is not None and path.is_file() else set()


def readable_pool(pool: str | Path, vision: str | Path | None) -> dict[str, list[str]]:
    """The pool's groups, in their order, without the studies that have no readable image."""
    gone = studies_left_out(vision)
    return {group: [uid for uid in uids if uid not in gone] for group, uids in read_json(pool).items()}


def readable_demonstrations(
    demonstrations: str | Path, studies: str | Path, vision: str | Path | None
) -> dict[str, dict[str, list[str]]]:
    """The drawn demonstrations of every readable study; a broken one is replaced, so that there are K for everybody.

    The replacement is the candidate whose hash with the study and with what it replaces is smallest, among the
    demonstrations drawn for anybody, of a patient not yet shown: the same for every method and backbone. Where all
    studies share their demonstrations, they share the first K readable ones of the draw.

    Args:
        demonstrations: path of the JSON of `dive.data.pools.draw_demonstrations`.
        studies: path of ``studies.parquet``.
        vision: folder of the vision features.

    Raises:
        DataError: too few readable demonstrations are left.
    """
    drawn: dict[str, dict[str, list[str]]] = read_json(demonstrations)
    spare: list[str] | None = drawn.pop("spare", None)
    gone = studies_left_out(vision)
    if not gone:
        return drawn
    if spare is not None:
        return {
            group: {uid: first_readable(uids, spare, gone) for uid, uids in draws.items() if uid not in gone}
            for group, draws in drawn.items()
        }
    # Only now, and in no job of an ordinary run: pandas would cost each of them a third of a second.
    from dive.data.studies import read_studies

    shown = {uid for draws in drawn.values() for uids in draws.values() for uid in uids}
    candidates = sorted(shown - gone)
    table = read_studies(studies, columns=["study_uid", "patient_uid"])
    patient = dict(zip(table["study_uid"], table["patient_uid"], strict=True))
    return {
        group: {uid: replace(uid, uids, gone, candidates, patient) for uid, uids in draws.items() if uid not in gone}
        for group, draws in drawn.items()
    }


def first_readable(shown: Sequence[str], spare: Sequence[str], gone: set[str]) -> list[str]:
    """As many of ``shown`` and then ``spare`` as were shown, without those that are ``gone``."""
    kept = [uid for uid in [*shown, *spare] if uid not in gone][: len(shown)]
    if len(kept) < len(shown):
        raise DataError(
            f"only {len(kept)} of the {len(shown) + len(spare)} candidates for shared demonstrations have a readable "
            "image; raise datasets.<name>.pool.demonstrations or lower shots"
        )
    return kept


def replace(
    study: str, shown: Sequence[str], gone: set[str], candidates: Sequence[str], patient: Mapping[str, str]
) -> list[str]:
    """``shown`` with other candidates in the places of those that are ``gone``."""
    from dive.data.draws import hashes

    kept = list(shown)
    for place, uid in enumerate(shown):
        if uid not in gone:
            continue
        taken = {patient[other] for other in kept if other not in gone}
        order = hashes(0, f"replacements/{study}/{uid}", candidates).argsort(kind="stable")
        other = next((candidates[i] for i in order if patient[candidates[i]] not in taken), None)
        if other is None:
            raise DataError(
                f"{study}: its demonstration {uid} has no readable image, and no other patient is left to replace it; "
                "raise datasets.<name>.pool.demonstrations or lower shots"
            )
        kept[place] = other
    return kept


def count_readable(pool: str | Path, vision: str | Path) -> dict[str, tuple[int, int]]:
    """What decoding left of a pool: group -> (studies drawn, studies used)."""
    used = readable_pool(pool, vision)
    return {group: (len(uids), len(used[group])) for group, uids in read_json(pool).items()}
