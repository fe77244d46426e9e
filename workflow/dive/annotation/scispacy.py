"""Decisive spans by a spaCy pipeline: scispaCy's models (Neumann et al. 2019), or any other with entities.

Best suited is ``en_ner_bc5cdr_md`` with the label DISEASE; ``en_core_sci_*`` with a UMLS linker is chosen from by
semantic type. The pipeline is read from a folder; nothing is downloaded. scispaCy's tokenizers keep some joined
findings ("opacities/nodule") as one word, so its spans can be wider than the vocabulary's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from dive.annotation.vocabulary import Report, Span, disjoint, polarities, sentences
from dive.data.roots import DataError
from dive.progress import log, progress

UNUSED = ("tagger", "parser", "attribute_ruler", "lemmatizer", "senter")
# Importing them registers the components that scispaCy's models name.
COMPONENTS = ("scispacy.custom_tokenizer", "scispacy.custom_sentence_segmenter", "scispacy.linking")
LINKER = "scispacy_linker"


def load_pipeline(path: str | None, types: Iterable[str]) -> Any:
    """The pipeline at ``path`` without what entities do not need, with a UMLS linker where ``types`` ask for one.

    Raises:
        DataError: spaCy, the folder, a component or the linker is absent.
    """
    try:
        import spacy
    except ImportError as error:
        raise DataError(
            "annotation.annotator scispacy needs spaCy: pip install 'dive[scispacy]', and scispacy for its own models"
        ) from error
    if not path:
        raise DataError("annotation.scispacy.path is empty; give the folder of a spaCy pipeline")
    for name in COMPONENTS:
        try:
            import_module(name)
        except ImportError as error:
            log.info("scispacy: %s was not loaded (%s)", name, error)
    try:
        pipeline = spacy.load(path, exclude=list(UNUSED))
    except OSError as error:
        raise DataError(f"annotation.scispacy.path: {path} is no spaCy pipeline ({error})") from error
    except ValueError as error:
        raise DataError(
            f"{path} has components or a tokenizer that are not installed; pip install scispacy ({error})"
        ) from error
    if types and LINKER not in pipeline.pipe_names:
        try:
            pipeline.add_pipe(LINKER, config={"linker_name": "umls"})
        except ValueError as error:
            raise DataError(
                "annotation.scispacy.types needs scispaCy's UMLS linker: pip install scispacy and fetch its index, or "
                "choose by labels"
            ) from error
    return pipeline


def chosen(entity: Any, labels: frozenset[str], types: frozenset[str], knowledge: Any) -> bool:
    """Whether an entity has one of the labels (none given: any) and its best link one of the semantic types."""
    if labels and entity.label_ not in labels:
        return False
    if not types:
        return True
    links = entity._.kb_ents
    return bool(links) and not types.isdisjoint(knowledge.cui_to_entity[links[0][0]].types)


def build(settings: Mapping[str, Any], files: Mapping[str, str]) -> Callable[[Iterable[Report]], Iterator[list[Span]]]:
    """The annotator of ``annotation.annotator: scispacy``.

    Every different sentence goes through the pipeline once: reports repeat theirs. Polarity is that of the
    vocabulary's cues, observation the entity's label.

    Args:
        settings: ``path`` of the pipeline, ``labels`` of entities (empty: all), UMLS semantic ``types`` (empty: not
            asked).
        files: not used.

    Raises:
        DataError: see `load_pipeline`; or the pipeline has none of the labels.
    """
    labels, types = frozenset(settings["labels"]), frozenset(settings["types"])
    pipeline = load_pipeline(settings["path"], types)
    offered = {label for name in pipeline.pipe_names for label in pipeline.pipe_labels.get(name, ())}
    if labels and offered and labels.isdisjoint(offered):
        raise DataError(
            f"annotation.scispacy.labels: {settings['path']} has none of {', '.join(sorted(labels))}, but "
            f"{', '.join(sorted(offered))}"
        )
    knowledge = pipeline.get_pipe(LINKER).kb if types else None

    def of_sentence(sentence: str, document: Any) -> list[Span]:
        mentions = [
            (entity.start_char, min(entity.end_char, len(sentence)), entity.label_)
            for entity in document.ents
            if entity.start_char < len(sentence) and chosen(entity, labels, types, knowledge)
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
        documents = progress(documents, "sentences through the pipeline", len(unique))
        found = {text: of_sentence(text, document) for text, document in zip(unique, documents, strict=True)}
        for report in reports:
            yield [
                span._replace(start=span.start + start, end=span.end + start)
                for start, end in sentences(report.text)
                for span in found[report.text[start:end]]
            ]

    return annotate
