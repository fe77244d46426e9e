"""From images and reports to token ids: the chat, its image tokens, and where the report lies in it.

``AutoProcessor`` is not used: Qwen 2.5-VL's demands a video processor and with it torchvision. The chat template, the
tokenizer and the family's image rule are all that a processor adds, and we also need offsets, which it does not give.
"""

from array import array
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from dive.backbones.families import Family


@dataclass
class Prompt:
    """One tokenised chat.

    Attributes:
        ids: token ids of the chat up to the report's last token; the terminator is a label, never an input.
        images: keys of the images, in order of their placeholders.
        prompt_length: index p of the report's first token y_1; equals ``len(ids)`` where no report was given.
        labels: y_1 .. y_T, and TERM where the report is complete; empty without a report.
        offsets: (start, end) characters of each y_t in the report; TERM has none.
        complete: False where the report was cut by the token limit, so that no false stop is taught.
        positions: position ids, (T,) or (3, T); filled when the prompt is first collated.
    """

    ids: list[int]
    images: tuple[str, ...]
    prompt_length: int
    labels: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    complete: bool = False
    positions: torch.Tensor | None = None

    @property
    def n_labels(self) -> int:
        """Number of supervised tokens, T + 1 for a complete report."""
        return len(self.labels)

    @property
    def report_length(self) -> int:
        """T, tokens of the report without TERM."""
        return len(self.labels) - self.complete


class PromptStore(Sequence[Prompt]):
    """Many prompts of one backbone in 4 bytes a token, where lists of them take fifteen times that.

    A prompt is made anew when it is asked for, without ``offsets`` and ``positions``.

    Args:
        term_id: the terminator, last label of a complete report.
    """

    def __init__(self, term_id: int) -> None:
        self.term_id = term_id
        self._ids = array("i")
        self._rows: list[tuple[int, int, int, bool, tuple[str, ...]]] = []

    def append(self, prompt: Prompt) -> None:
        """Add a prompt at the end."""
        begin = len(self._ids)
        self._ids.extend(prompt.ids)
        self._rows.append((begin, len(self._ids), prompt.prompt_length, prompt.complete, prompt.images))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int | slice) -> "Prompt | PromptStore":
        """The prompt at ``row``, or a store of the prompts of a slice, which shares the memory of this one."""
        if isinstance(row, slice):
            part = copy(self)
            part._rows = self._rows[row]
            return part
        begin, end, prompt_length, complete, images = self._rows[row]
        ids = self._ids[begin:end].tolist()
        answer = ids[prompt_length:]
        return Prompt(ids, images, prompt_length, [*answer, self.term_id] if complete else answer, complete=complete)


class PromptBuilder:
    """Render chats of (image, report) pairs for one backbone.

    Args:
        tokenizer: a *fast* tokenizer with a chat template; slow ones have no offsets.
        family: image conventions of the model.
        image_token_id: id of one image token in the model's config.
        eos_token_ids: ``generation_config.eos_token_id`` as a set; empty where there is none.
        instruction: what the user's turn says beside the image (config ``backbones.<name>.instruction``).

    Raises:
        ValueError: slow tokenizer, no chat template, or a terminator that would not stop generation.
    """

    def __init__(
        self, tokenizer: Any, family: Family, image_token_id: int, eos_token_ids: set[int], instruction: str
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError("a fast tokenizer is needed (character offsets); convert it with AutoTokenizer(use_fast)")
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template; put chat_template.jinja beside tokenizer.json")
        self.tokenizer = tokenizer
        self.family = family
        self.image_token_id = image_token_id
        self.instruction = instruction
        self.term_id = self._find_terminator(eos_token_ids)

    def _find_terminator(self, eos_token_ids: set[int]) -> int:
        """TERM: the token that the template emits right after the assistant's text (not the tokenizer's EOS)."""
        probe = "Report."
        head = self._chat([], add_generation_prompt=True)
        text = self._chat([], report=probe)
        if not text.startswith(head + probe):
            raise ValueError("the chat template does not put the assistant's text right after the generation prompt")
        tail = self.tokenizer(text[len(head + probe) :], add_special_tokens=False)["input_ids"]
        term = tail[0] if tail else None
        if term not in eos_token_ids:
            raise ValueError(
                f"the chat template ends an answer with token {term} "
                f"({self.tokenizer.convert_ids_to_tokens(term) if term is not None else 'nothing'}), which is not in "
                f"eos_token_id {sorted(eos_token_ids)} of generation_config.json: generation would never stop; "
                "add it there"
            )
        if term == self.tokenizer.pad_token_id:
            raise ValueError(
                f"the terminator {self.tokenizer.convert_ids_to_tokens(term)} is also the padding token; "
                "set another pad_token in tokenizer_config.json"
            )
        return term

    def _chat(
        self, demonstrations: Sequence[str], report: str | None = None, add_generation_prompt: bool = False
    ) -> str:
        user = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": self.instruction}],
        }
        messages: list[dict[str, Any]] = []
        for text in demonstrations:
            messages += [user, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        messages.append(user)
        if report is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": report}]})
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def render(
        self,
        query: str,
        image_tokens: Mapping[str, int],
        demonstrations: Sequence[tuple[str, str]] = (),
        report: str | None = None,
        max_report_tokens: int | None = None,
    ) -> Prompt:
        """Tokenise a chat: K demonstrations (image, report), the query's image and, for training, its report.

        Args:
            query: key of the query's image.
            image_tokens: number of image tokens of every key used.
            demonstrations: (image key, report) in the order in which they stand in the context.
            report: the query's report, white space already collapsed; None at generation time.
            max_report_tokens: a longer report is cut and marked incomplete.

        Returns:
            Prompt: with ``labels``, ``offsets`` and ``complete`` where a report was given.

        Raises:
            ValueError: the template changed the report's text, or the tokenizer merged it with what precedes it.
        """
        texts = [text for _, text in demonstrations]
        images = (*(key for key, _ in demonstrations), query)
        head = self._expand(self._chat(texts, add_generation_prompt=True), len(images))
        if report is None:
            ids = self.tokenizer(head, add_special_tokens=False)["input_ids"]
            ids = self._repeat_image_tokens(ids, images, image_tokens)
            return Prompt(ids=ids, images=images, prompt_length=len(ids))

        text = self._expand(self._chat(texts, report=report), len(images))
        if not text.startswith(head + report):
            raise ValueError("the chat template changed the report's text; collapse its white space and strip it first")
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        begin, end = len(head), len(head) + len(report)
        first = next(i for i, (_, stop) in enumerate(offsets) if stop > begin)
        last = next(i for i, (start, stop) in enumerate(offsets) if start >= end and stop > start)
        if offsets[first][0] < begin or offsets[last - 1][1] > end:
            raise ValueError(
                "the tokenizer merges the report with the chat template around it; positions are undefined"
            )
        if ids[last] != self.term_id:
            raise ValueError("the report is not followed by the terminator in this chat template")
        complete = max_report_tokens is None or last - first <= max_report_tokens
        stop = last if complete else first + max_report_tokens
        prompt_ids = self._repeat_image_tokens(ids[:first], images, image_tokens)
        answer = ids[first:stop]
        return Prompt(
            ids=prompt_ids + answer,
            images=images,
            prompt_length=len(prompt_ids),
            labels=[*answer, self.term_id] if complete else answer,
            offsets=[(max(a - begin, 0), b - begin) for a, b in offsets[first:stop]],
            complete=complete,
        )

    def _expand(self, text: str, n_images: int) -> str:
        if text.count(self.family.placeholder) != n_images:
            raise ValueError(
                f"the chat holds {text.count(self.family.placeholder)} image placeholders for {n_images} images; "
                f"a report or the instruction must not contain {self.family.placeholder!r}"
            )
        return text.replace(self.family.placeholder, self.family.expansion)

    def _repeat_image_tokens(self, ids: list[int], images: Sequence[str], image_tokens: Mapping[str, int]) -> list[int]:
        counts = iter([image_tokens[key] for key in images])
        repeated: list[int] = []
        for token in ids:
            repeated += [token] * next(counts) if token == self.image_token_id else [token]
        return repeated
