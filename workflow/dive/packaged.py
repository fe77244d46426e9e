"""Files that come with the package, wherever it is installed: the vocabulary, templates, the manifest of weights."""

from importlib.resources import files
from pathlib import Path


def packaged(name: str) -> Path:
    """Path of a file below ``dive/resources``.

    Args:
        name: relative to that folder, for example ``templates/report.html.j2``.
    """
    return Path(str(files("dive") / "resources" / name))


VOCABULARY = str(packaged("vocabulary.csv"))
"""The table of surface forms that the annotator ``vocabulary`` and the lexicon scores read by default."""
