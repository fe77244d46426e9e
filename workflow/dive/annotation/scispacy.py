"""Decisive spans by a spaCy pipeline: scispaCy's models (Neumann et al. 2019), or any other with entities.

Best suited is ``en_ner_bc5cdr_md`` with the label DISEASE; the entities of ``en_core_sci_*`` are chosen from by the
UMLS semantic types of what a linker finds. scispaCy's tokenizers keep some joined findings ("opacities/nodule") as one
word, so its spans can be wider than the vocabulary's.

Pipeline and linker are read from folders; nothing is downloaded. scispaCy's own component would ask its server for the
index of UMLS at every start, even for one in its cache, so it is left out of a pipeline and the linker is made here.
"""

import configparser
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from dive.annotation.vocabulary import Report, Span, disjoint, polarities, sentences
from dive.data.roots import DataError
from dive.progress import log, progress

UNUSED = ("tagger", "parser", "attribute_ruler", "lemmatizer", "senter")
"""Components that a statistical recogniser does without; rules may need them."""

SETTERS = {
    "TAG": ("tagger",),
    "POS": ("attribute_ruler", "morphologizer"),
    "MORPH": ("attribute_ruler", "morphologizer"),
    "LEMMA": ("attribute_ruler", "lemmatizer", "trainable_lemmatizer"),
    "DEP": ("parser",),
    "SENT_START": ("parser", "senter", "sentencizer"),
    "IS_SENT_START": ("parser", "senter", "sentencizer"),
}
"""What a rule may ask of a token that the tokenizer does not know -> the factories of components that set it."""

OTHERS = ("entity_ruler", "merge_entities", "ner", "span_ruler", "tok2vec", "transformer")
"""Factories of components that set none of it. Of any other nobody here knows what it sets."""

LINKER = "scispacy_linker"
# Importing them registers the components that scispaCy's models name.
COMPONENTS = ("scispacy.custom_tokenizer", "scispacy.custom_sentence_segmenter")


def needed_files(settings: Mapping[str, Any]) -> list[str]:
    """A file of the pipeline, and one of the linker where types ask for it: if they are there, so are their folders."""
    files = [f"{settings['path']}/config.cfg"]
    return [*files, f"{settings['linker']}/nmslib_index.bin"] if settings["types"] else files


def pipeline_files(settings: Mapping[str, Any]) -> list[str]:
    """What is read: files at a pipeline's top, its components' folders, and where types need it the linker's files."""
    top = Path(settings["path"])
    own = [top / name for name in ("config.cfg", "meta.json", "tokenizer")]
    parts = [path for path in sorted(top.iterdir()) if path.is_dir()]
    of_linker = Path(settings["linker"]).glob("*") if settings["types"] else ()
    linker = [path for path in sorted(of_linker) if path.suffix in (".bin", ".joblib", ".npz", ".json", ".jsonl")]
    return [str(path) for path in (*own, *parts, *linker) if path.exists()]


def asked_of_tokens(patterns: Iterable[Any]) -> set[str]:
    """Which of SETTERS' attributes the token patterns of a ruler ask for."""
    tokens = [token for entry in patterns if isinstance(entry.get("pattern"), list) for token in entry["pattern"]]
    return {key.upper() for token in tokens for key in token} & set(SETTERS)


def pipeline_errors(path: str) -> list[str]:
    """What the rules of the pipeline in a folder ask for and none of its components sets, told from its files alone.

    A file that cannot be read is left to `load_pipeline`.
    """
    config = configparser.ConfigParser(interpolation=None)
    errors = []
    try:
        config.read(f"{path}/config.cfg", encoding="utf-8")
        names = json.loads(config["nlp"]["pipeline"])
        factories = [json.loads(config[f"components.{name}"]["factory"]) for name in names]
        for index, name in enumerate(names):
            before = factories[:index]
            if not set(before) <= {*OTHERS, *(one for setters in SETTERS.values() for one in setters)}:
                break
            for file in (Path(path, name, "patterns.jsonl"), Path(path, name, "patterns"), Path(path, f"{name}.jsonl")):
                lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
                asked = asked_of_tokens(json.loads(line) for line in lines if line.strip())
                errors += [
                    f"annotation.scispacy.path: {name} in {path} has rules with {key}, which no component before it "
                    f"sets; add {' or '.join(SETTERS[key])} before {name}, or rules with TEXT and LOWER only"
                    for key in sorted(asked)
                    if not set(SETTERS[key]) & set(before)
                ]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, configparser.Error):
        return errors
    return errors


def load_pipeline(path: str | None) -> Any:
    """The pipeline at ``path`` without what its entities do not need.

    Raises:
        DataError: spaCy, the folder or a component is absent, or the pipeline cannot read a sentence.
    """
    try:
        import spacy
    except ImportError as error:
        raise DataError(
            "annotation.annotator scispacy needs spaCy: pip install 'dive[scispacy]' (or -e '.[scispacy]')"
        ) from error
    if not path:
        raise DataError("annotation.scispacy.path is empty; give the folder of a spaCy pipeline")
    for name in COMPONENTS:
        try:
            import_module(name)
        except ImportError as error:
            log.info("scispacy: %s was not loaded (%s)", name, error)
    try:
        pipeline = spacy.load(path, exclude=[LINKER])
    except OSError as error:
        raise DataError(f"annotation.scispacy.path: {path} is no spaCy pipeline ({error})") from error
    except ValueError as error:
        raise DataError(
            f"annotation.scispacy.path: {path} has components or a tokenizer that are not installed, or rules that "
            f"they do not serve; pip install scispacy ({error})"
        ) from error
    asked = set()
    for _, component in pipeline.pipeline:
        asked |= asked_of_tokens(getattr(component, "patterns", None) or ())
        asked |= {str(getattr(component, "phrase_matcher_attr", "")).upper()} & set(SETTERS)
    if not asked:
        pipeline.select_pipes(disable=[name for name in UNUSED if name in pipeline.pipe_names])
    try:
        pipeline("No effusion is seen.")
    except Exception as error:  # of a component, which may be anybody's
        raise DataError(
            f"annotation.scispacy.path: the pipeline at {path} cannot read a sentence; its rules may ask for what no "
            f"component before them sets, such as POS or LEMMA: add the component, or rules without it ({error})"
        ) from error
    return pipeline


def load_linker(folder: str | None) -> Any:
    """scispaCy's linker, with its settings, from a folder: a function that sets ``kb_ents`` of a document's entities.

    Args:
        folder: holds ``nmslib_index.bin``, ``tfidf_vectorizer.joblib``, ``tfidf_vectors_sparse.npz`` and
            ``concept_aliases.json``, as scispaCy publishes and writes them, and one ``.jsonl``, the knowledge base. The
            vectorizer is a pickle: only from who is trusted.

    Raises:
        DataError: scispaCy or a file is absent.
    """
    if not folder:
        raise DataError("annotation.scispacy.linker is empty; give the folder of a linker, or choose by labels alone")
    try:
        from scispacy.candidate_generation import CandidateGenerator, LinkerPaths
        from scispacy.linking import EntityLinker
        from scispacy.linking_utils import KnowledgeBase
    except ImportError as error:
        raise DataError(
            f"annotation.scispacy.types needs scispaCy's linker ({error}): pip install scispacy, or choose by labels"
        ) from error
    if not Path(folder).is_dir():
        raise DataError(f"annotation.scispacy.linker: {folder} is no folder")
    paths = LinkerPaths.from_directory(folder)
    absent = [Path(path).name for path in paths if not Path(path).is_file()]
    bases = sorted(Path(folder).glob("*.jsonl"))
    if absent or len(bases) != 1:
        lacks = [*absent, *(["a single *.jsonl, the knowledge base"] if len(bases) != 1 else [])]
        raise DataError(f"annotation.scispacy.linker: {folder} does not have {', '.join(lacks)}")
    aliases, vectorizer, index = paths.load()
    return EntityLinker(
        candidate_generator=CandidateGenerator(index, vectorizer, aliases, KnowledgeBase(str(bases[0])))
    )


def chosen(entity: Any, labels: frozenset[str], types: frozenset[str], linker: Any) -> bool:
    """Whether an entity has one of the labels (none given: any) and its best link one of the semantic types."""
    if labels and entity.label_ not in labels:
        return False
    if not types:
        return True
    links = entity._.kb_ents
    return bool(links) and not types.isdisjoint(linker.kb.cui_to_entity[links[0][0]].types)


def build(settings: Mapping[str, Any], files: Mapping[str, str]) -> Callable[[Iterable[Report]], Iterator[list[Span]]]:
    """The annotator of ``annotation.annotator: scispacy``.

    Every different sentence goes through the pipeline once: reports repeat theirs. Polarity is that of the
    vocabulary's cues, observation the entity's label.

    Args:
        settings: ``path`` of the pipeline, ``labels`` of entities (empty: all), UMLS semantic ``types`` (empty: not
            asked), the folder of the ``linker`` that these need.
        files: not used.

    Raises:
        DataError: see `load_pipeline` and `load_linker`; or the pipeline has none of the labels.
    """
    labels, types = frozenset(settings["labels"]), frozenset(settings["types"])
    pipeline = load_pipeline(settings["path"])
    offered = {label for name in pipeline.pipe_names for label in pipeline.pipe_labels.get(name, ())}
    if labels and offered and labels.isdisjoint(offered):
        raise DataError(
            f"annotation.scispacy.labels: {settings['path']} has none of {', '.join(sorted(labels))}, but "
            f"{', '.join(sorted(offered))}"
        )
    linker = load_linker(settings["linker"]) if types else None

    def of_sentence(sentence: str, document: Any) -> list[Span]:
        mentions = [
            (entity.start_char, min(entity.end_char, len(sentence)), entity.label_)
            for entity in document.ents
            if entity.start_char < len(sentence) and chosen(entity, labels, types, linker)
        ]
        return disjoint(
            Span(start, end, label, polarity, "scispacy")
            for (start, end, label), (polarity, _) in zip(mentions, polarities(sentence, mentions), strict=True)
        )

    def annotate(reports: Iterable[Report]) -> Iterator[list[Span]]:
        reports = list(reports)
        unique = list(dict.fromkeys(r.text[start:end] for r in reports for start, end in sentences(r.text)))
        # As its model was trained: with the full stop that `sentences` leaves out.
        documents = pipeline.pipe((f"{text}." for text in unique), batch_size=256)
        if linker is not None:
            documents = map(linker, documents)
        documents = progress(documents, "sentences through the pipeline", len(unique))
        found = {text: of_sentence(text, document) for text, document in zip(unique, documents, strict=True)}
        for report in reports:
            yield [
                span._replace(start=span.start + start, end=span.end + start)
                for start, end in sentences(report.text)
                for span in found[report.text[start:end]]
            ]

    return annotate
