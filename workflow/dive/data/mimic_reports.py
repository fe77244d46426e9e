"""The report files of MIMIC-CXR: in folders or in a zip, whatever became of some of them on the way."""

import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dive.data.csv_tables import decode
from dive.data.downloads import archive_problem, entry_problem, is_web_page
from dive.data.roots import DataError, subfolders
from dive.progress import log

STUDY = re.compile(r"s\d{8,}")
PLACE = re.compile(r"(?:(.*)/)?(p\d\d/p\d+/s\d+)\.txt", re.DOTALL)
"""Of a report in an archive: the folder above, and where it lies as in the official release."""

UNREADABLE_ENTRY = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError)
"""What zipfile raises on an entry that is damaged, encrypted, or compressed in a way that it does not know."""


class Problem:
    """Why a study has no text: the rule that leaves it out, and the detail for the list."""

    def __init__(self, rule: str, detail: str) -> None:
        self.rule = rule
        self.detail = detail


class Reports:
    """Where reports are looked for, and how many were not UTF-8.

    Args:
        sources: folders and zips, of `dive.data.roots.find_reports`.

    Attributes:
        recoded: reports so far that were read by another decoding than UTF-8.

    Raises:
        DataError: a zip cannot be read, or no source has a report.
    """

    def __init__(self, sources: list[Path]) -> None:
        self.sources, self.recoded = sources, 0
        self._opened = [ZipReports(source) if source.suffix == ".zip" else source for source in sources]
        self.archives = [source for source in self._opened if isinstance(source, ZipReports)]
        self.folders = [source for source in self._opened if isinstance(source, Path)]
        if self.archives and not self.folders and not any(map(len, self.archives)):
            raise DataError(
                f"{self.archives[0].path} has no report like files/p10/p10000032/s50414267.txt in it: is it another "
                "archive? Get mimic-cxr-reports.zip of MIMIC-CXR"
            )

    def read(self, pairs: list[tuple[str, str]]) -> Iterator[str | Problem]:
        """Yield the report of every (patient_uid, study_uid), or why there is none, from the first source that has it.

        Text is UTF-8 with newlines translated, as the official code opens it. Bytes that are not UTF-8 are read as
        Windows-1252 and counted: they stand mostly outside the sections that are used. What neither decoding has, and
        files or entries of a zip that cannot be read, are a problem of that study, never guessed.
        """
        names = ", ".join(source.name for source in self.sources) or "no folder or zip of reports"
        log.info("reports come from %s", names)
        for patient, study in pairs:
            content = self._content(patient, study)
            if content is None:
                content = Problem("no_report", f"{patient[:3]}/{patient}/{study}.txt is in none of: {names}")
            yield content if isinstance(content, Problem) else self._text(content)
        if self.recoded:
            log.warning("%d reports are not UTF-8: read as Windows-1252", self.recoded)

    def _content(self, patient: str, study: str) -> bytes | Problem | None:
        place = f"{patient[:3]}/{patient}/{study}"
        problem: Problem | None = None
        for source in self._opened:
            if isinstance(source, ZipReports):
                content = None if problem else source.read(place)
                if content is not None:
                    return content
                continue
            try:
                with open(f"{source}/{place}.txt", "rb") as handle:
                    return handle.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = Problem("unreadable_report", f"cannot be opened ({error.strerror})")
        return problem

    def _text(self, content: bytes) -> str | Problem:
        if not content:
            return Problem("unreadable_report", "zero bytes")
        if is_web_page(content):
            return Problem("unreadable_report", "a web page in place of the report")
        text, recoded = decode(content)
        if text is None:
            return Problem("undecodable_report", "neither UTF-8 nor Windows-1252")
        if "\0" in text:
            return Problem("unreadable_report", "binary content in place of the report")
        self.recoded += recoded
        return text.replace("\r\n", "\n").replace("\r", "\n")


class ZipReports:
    """The reports in ``mimic-cxr-reports.zip``, read in place.

    An entry is the report of the study whose place ``p10/p10000032/s50414267.txt`` its path ends in, below whatever
    folders. Where a report lies below several of them, as a backup beside the release, the folder with the most
    reports has it; of equals ``files``. In an archive without such places an entry is found by its name, if no other
    has the same name.

    Raises:
        DataError: the file is no zip archive that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        problem = archive_problem(path)
        if problem:
            raise DataError(f"{path}: {problem}")
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is no readable zip archive ({error}); download it again") from error
        tops: dict[str, dict[str, zipfile.ZipInfo]] = {}
        self._twice: set[str] = set()
        self._flat: dict[str, zipfile.ZipInfo | None] = {}
        for entry in self._archive.infolist():
            name = entry.filename.replace("\\", "/")
            if not name.endswith(".txt") or "__MACOSX/" in name:
                continue
            match = PLACE.fullmatch(name)
            if match:
                before = tops.setdefault(match[1] or "", {}).setdefault(match[2], entry)
                if (before.CRC, before.file_size) != (entry.CRC, entry.file_size):
                    self._twice.add(entry.filename)
            else:
                study = name.rsplit("/", 1)[-1].removesuffix(".txt")
                if STUDY.fullmatch(study):
                    self._flat[study] = None if study in self._flat else entry
        order = sorted(tops, key=lambda top: (-len(tops[top]), top.rsplit("/", 1)[-1] != "files", top.count("/"), top))
        self._places: dict[str, zipfile.ZipInfo] = {}
        for top in reversed(order):
            self._places |= tops[top]
        if self._places:
            self._flat = {}
        copies = sum(map(len, tops.values())) - len(self._places)
        if copies:
            log.warning("%s: %d reports lie in several folders: those in %r are read", path, copies, order[0] or ".")
        first = next(iter(self._places.values()), None)
        problem = first and entry_problem(first.flag_bits, first.compress_type)
        if problem:
            raise DataError(f"{path}: {problem}")

    def read(self, place: str) -> bytes | Problem | None:
        """Bytes of the report at ``p10/p10000032/s50414267``; None when there is none, a problem when it is damaged."""
        study = place.rsplit("/", 1)[-1]
        entry = self._places.get(place, self._flat.get(study))
        if entry is not None and entry.filename in self._twice:
            return Problem("unreadable_report", "two entries of this path in the zip, which differ")
        if entry is None:
            several = Problem(
                "unreadable_report", "several files of this name in the zip, none in its patient's folder"
            )
            return several if study in self._flat else None
        try:
            return self._archive.read(entry)
        except UNREADABLE_ENTRY as error:
            return Problem("unreadable_report", f"damaged in the zip ({error})")

    def __iter__(self) -> Iterator[str]:
        yield from (place.rsplit("/", 1)[-1] for place in self._places)
        yield from self._flat

    def __len__(self) -> int:
        return len(self._places) + len(self._flat)


def count_strays(files: Path, reports: Reports, known: set[str]) -> dict[str, int]:
    """Reports on disk (``reports``), and what of them and of the study folders no table names (``stray_...``).

    One listing of every patient's folder, and none of the studies' own: seconds at full size.

    Args:
        files: the folder of the images.
        reports: where reports were looked for.
        known: study_uids of the tables, excluded ones too.
    """
    named, strays, folders = set(), set(), set()
    closed: Counter[str] = Counter()
    for place in dict.fromkeys([files, *reports.folders]):
        for group in subfolders(place):
            if not re.fullmatch(r"p\d\d", group.name):
                continue
            for patient in subfolders(group):
                try:
                    entries = os.scandir(patient)
                except OSError:
                    closed[group.name] += 1
                    continue
                with entries:
                    for entry in entries:
                        name, ending = os.path.splitext(entry.name)
                        if ending == ".txt" and place in reports.folders and STUDY.fullmatch(name):
                            (named if name in known else strays).add(name)
                        elif not ending and place == files and name not in known and STUDY.fullmatch(name):
                            folders.add(name)
    for archive in reports.archives:
        for name in filter(STUDY.fullmatch, archive):
            (named if name in known else strays).add(name)
    for what, names in (("reports", strays), ("study folders", folders)):
        if names:
            log.warning("%d %s are named by no table, %s the first: not used", len(names), what, min(names))
    if closed:
        log.warning("%d patients' folders cannot be listed, in %s first", closed.total(), next(iter(closed)))
    return {"reports": len(named), "stray_reports": len(strays), "stray_study_folders": len(folders)}
