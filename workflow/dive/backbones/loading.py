"""A frozen vision-language backbone behind one small interface, the same for every family.

Features of images come from a cache; the model sees input embeddings, explicit masks and explicit positions, so that
left padding, cached prefixes and Qwen's three-dimensional positions need no special case anywhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dive.backbones.checkpoint import load_checkpoint
from dive.backbones.families import family_of, rotary_positions
from dive.backbones.files import check_model
from dive.backbones.layers import find_decoder_layers
from dive.backbones.prompts import Prompt, PromptBuilder
from dive.backbones.requirements import image_errors, unsupported
from dive.backbones.shared import Shared, SharedCache, common_length
from dive.devices import claim_device, explained_memory, has_triton, upload
from dive.progress import log


class ImageFeatures(NamedTuple):
    """What the language model sees of one image.

    Attributes:
        tokens: (n, width), the projected features of its image tokens.
        grid: (t, h, w) in patches where positions depend on it (Qwen), else None.
    """

    tokens: torch.Tensor
    grid: tuple[int, int, int] | None


@dataclass
class Batch:
    """Left-padded prompts, or what of them follows the tokens that they share, ready for the model.

    Attributes:
        embeds: (B, T, width) input embeddings, image features in place.
        mask: (B, T) bool, True at real tokens.
        positions: (B, T), or (3, B, T) with M-RoPE.
        next_position: (B,) position of the token that follows each prompt.
        token_types: (B, T), 1 at image tokens, where the family wants them.
        own_masks: whether they run with masks that are made here, see `Backbone.prefill`.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    next_position: torch.Tensor
    token_types: torch.Tensor | None
    own_masks: bool


@dataclass
class Answers:
    """Right-padded continuations of prompts: the last prompt token and the report, which predict report and TERM.

    Attributes:
        ids: (B, A) = last prompt token, y_1 .. y_T; its outputs are at the predicting positions p-1 .. p+T-1.
        labels: (N,) = y_1 .. y_T, TERM of each report, one report after another.
        mask: (B, A) bool, **on the CPU**, True where a label is; what is left is padding.
        next_position: (B,) position of the first of ``ids``.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    next_position: torch.Tensor


class Backbone:
    """A frozen model with its tokenizer, image processor and prompt builder.

    Args:
        model: an image-text-to-text model; frozen and put in evaluation mode here.
        tokenizer: its fast tokenizer, with chat template.
        instruction: the user's words beside each image.
        source: folder or hub id (image processor, records).
        revision: hub revision, or None.
        image: overrides of the image processor (for example ``max_pixels``).

    Attributes:
        layers: decoder layers in order, found by probing.
        term_id: TERM, the template's end-of-turn token, which ends every report that the model reads; one that it
            writes ends at any of ``stop_ids``.
        compiled: whether ``compile`` was called.
    """

    compiled = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        instruction: str,
        source: str = "",
        revision: str | None = None,
        image: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        if has_triton(self.device.type):
            from dive.backbones.norms import fuse_norms

            fuse_norms(self.model)
        self.source, self.revision, self.image = source, revision, dict(image or {})
        config = model.config
        self.width: int = config.get_text_config().hidden_size
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self.image_token_id: int = config.image_token_id
        self.family = family_of(config.model_type, tokenizer)
        self.prompts = PromptBuilder(tokenizer, self.family, self.image_token_id, self.stop_ids, instruction)
        self.term_id = self.prompts.term_id

    @cached_property
    def layers(self) -> list[nn.Module]:
        return find_decoder_layers(self.model)

    def compile(self, backend: str = "inductor") -> None:
        """Have torch.compile make kernels of the decoder, with whatever steers it (``backbones.<name>.compile``).

        Other kernels round otherwise, so results agree to rounding and not to the bit. A graph is made for each way in
        which the decoder is called: with and without steering, gradients and a cache.

        Args:
            backend: of torch.compile.
        """
        import torch._dynamo

        if has_triton(self.device.type):
            from dive.backbones.norms import plain_norms

            plain_norms(self.model)  # torch.compile makes its own kernels of them
        # Or a graph made before a method is attached would be taken for one that steers, silently.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.config.recompile_limit = 64
        decoder = next(
            module
            for module in self.model.modules()
            if any(isinstance(child, nn.ModuleList) and list(child) == self.layers for child in module.children())
        )
        decoder.compile(backend=backend, dynamic=True)
        self.compiled = True

    @cached_property
    def image_processor(self) -> Any:
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(
            self.source, revision=self.revision, trust_remote_code=False, use_fast=False, **self.image
        )

    @property
    def stop_ids(self) -> set[int]:
        """The tokens that end what the model writes, TERM among them: those at which ``model.generate`` stops."""
        eos = self.model.generation_config.eos_token_id
        ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
        if not all(type(token) is int for token in ids):
            raise ValueError(
                "eos_token_id of the backbone's generation_config.json is neither a token's number nor a list of them; "
                "correct it there"
            )
        return {*ids}

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def _window(self) -> int | None:
        """Positions that the sliding layers see, itself included; None where there are none."""
        return getattr(self.model.config.get_text_config(), "sliding_window", None)

    def new_cache(self) -> Any:
        """An empty key-value cache with the layer types (sliding or full) of this model."""
        from transformers.cache_utils import DynamicCache

        return DynamicCache(config=self.model.config.get_text_config())

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) of final normed hidden states (..., width): the frozen output head."""
        return self.model.get_output_embeddings()(hidden)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        """Run the vision tower and the projector on RGB images.

        Returns:
            One ``ImageFeatures`` an image, on the model's device.
        """
        pixels = self.image_processor(images=list(images), return_tensors="pt")
        arguments = {"pixel_values": pixels["pixel_values"].to(self.device, self.dtype)}
        grids: list[Any] = [None] * len(images)
        if self.family.rotary_3d:
            arguments["image_grid_thw"] = pixels["image_grid_thw"].to(self.device)
            grids = [tuple(grid) for grid in pixels["image_grid_thw"].tolist()]
        features = self.model.get_image_features(**arguments)
        features = getattr(features, "pooler_output", features)  # transformers 5 wraps the tensors
        return [ImageFeatures(tokens, grid) for tokens, grid in zip(features, grids, strict=True)]

    def _positions(self, prompt: Prompt, features: Mapping[str, ImageFeatures]) -> torch.Tensor:
        if prompt.positions is None:
            ids = torch.tensor(prompt.ids)
            if self.family.rotary_3d:
                grids = [features[key].grid for key in prompt.images]
                prompt.positions = rotary_positions(self.model, ids, self.image_token_id, grids)
            else:
                prompt.positions = torch.arange(len(ids))
        return prompt.positions

    @torch.no_grad()
    @explained_memory("shots")
    def share(self, prompts: Sequence[Prompt], features: Mapping[str, ImageFeatures]) -> Shared | None:
        """Run the demonstrations with which all prompts begin; None where they have none, or not the same ones.

        What they put in the cache is equal for every prompt: no token sees a later one, and the images among them are
        whole. A single prompt has nobody to share with.
        """
        if len(prompts) < 2:
            return None
        first = prompts[0]
        n_query = len(features[first.images[-1]].tokens)
        length = common_length(prompts, self.image_token_id, n_query)
        if not length:
            return None
        if self._window is not None and n_query > self._window:
            # Releases of transformers differ in what such an image's tokens see of each other.
            log.info("an image of %d tokens exceeds the sliding window: every prompt is run whole", n_query)
            return None
        # Positions are those of a whole prompt: Qwen's rule does not read one that is cut at an image.
        positions = self._positions(first, features)[..., :length]
        shown = first.images[:-1]
        demonstrations = replace(
            first, ids=first.ids[:length], images=shown, prompt_length=length, labels=[], positions=positions
        )
        cache = self.new_cache()
        self.prefill(self.collate([demonstrations], features), cache)
        layers = cache.layers
        return Shared(
            length,
            len(shown),
            [layer.keys for layer in layers],
            [layer.values for layer in layers],
            [layer.is_sliding for layer in layers],
        )

    def collate(
        self,
        prompts: Sequence[Prompt],
        features: Mapping[str, ImageFeatures],
        part: str = "prompt",
        shared: Shared | None = None,
    ) -> Batch:
        """Left-pad prompts and put the image features in.

        Args:
            prompts: B prompts.
            features: image features by key.
            part: ``prompt`` (up to the last prompt token), ``prefix`` (without that token: what training computes
                without gradient) or ``full`` (report included: the teacher's input).
            shared: of these prompts; the tokens that it holds are left out, to be continued from its cache.
        """
        skip, images = (shared.length, shared.images) if shared else (0, 0)
        stops = {
            "prompt": [p.prompt_length for p in prompts],
            "prefix": [p.prompt_length - 1 for p in prompts],
            "full": [len(p.ids) for p in prompts],
        }[part]
        longest = max(stops) - skip
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        positions = torch.zeros(*([3] if self.family.rotary_3d else []), len(prompts), longest, dtype=torch.long)
        next_position = torch.zeros(len(prompts), dtype=torch.long)
        vision = []
        for row, (prompt, stop) in enumerate(zip(prompts, stops, strict=True)):
            begin = longest - (stop - skip)
            ids[row, begin:] = torch.tensor(prompt.ids[skip:stop])
            mask[row, begin:] = True
            own = self._positions(prompt, features)[..., :stop]
            positions[..., row, begin:] = own[..., skip:]
            next_position[row] = own.max() + 1
            vision += [features[key].tokens for key in prompt.images[images:]]
        # Whatever is asked of ids and masks is asked here: on a GPU it would have to be waited for.
        is_image = ids == self.image_token_id
        token_types = is_image.long() if self.family.token_types else None
        embeds = self.model.get_input_embeddings()(upload(ids.masked_fill(is_image, 0), self.device))
        if vision:
            places = upload(is_image.flatten().nonzero()[:, 0], self.device)
            tokens = upload(torch.cat(vision), self.device).to(embeds.dtype)
            embeds = embeds.flatten(0, 1).index_copy_(0, places, tokens).view_as(embeds)
        return Batch(
            embeds=embeds,
            mask=upload(mask, self.device),
            positions=upload(positions, self.device),
            next_position=upload(next_position, self.device),
            token_types=None if token_types is None else upload(token_types, self.device),
            own_masks=self._needs_masks(mask, token_types),
        )

    def collate_answers(self, prompts: Sequence[Prompt], prefix: Batch) -> Answers:
        """Right-padded inputs and labels of the steered part, to follow ``collate(..., part="prefix")``."""
        longest = max(p.n_labels for p in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            begin = prompt.prompt_length - 1
            ids[row, : prompt.n_labels] = torch.tensor(prompt.ids[begin : begin + prompt.n_labels])
            mask[row, : prompt.n_labels] = True
        labels = torch.tensor([label for prompt in prompts for label in prompt.labels])
        return Answers(upload(ids, self.device), upload(labels, self.device), mask, prefix.next_position)

    def prefill(self, batch: Batch, cache: Any = None) -> torch.Tensor:
        """Run collated prompts: final normed hidden states (B, T, width); ``cache`` is filled where given.

        A ``SharedCache`` is continued: the batch must have been collated with what it shares.
        """
        arguments: dict[str, Any] = {}
        attention: Any = batch.mask.long()
        if isinstance(cache, SharedCache):
            mask = F.pad(batch.mask, (cache.shared_length, 0), value=True)
            attention = self._attention_masks(mask, batch.mask.shape[1], cache, batch.token_types)
        elif batch.own_masks:
            attention = self._attention_masks(batch.mask, batch.mask.shape[1], cache, batch.token_types)
        elif batch.token_types is not None:
            arguments["token_type_ids"] = batch.token_types
        return self.model.model(
            inputs_embeds=batch.embeds,
            attention_mask=attention,
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **arguments,
        ).last_hidden_state

    def extend(self, ids: torch.Tensor, mask: torch.Tensor, next_position: torch.Tensor, cache: Any) -> torch.Tensor:
        """Continue cached prompts with text: final normed hidden states (B, A, width); gradients flow.

        Args:
            ids: (B, A) text tokens; padding lies on the right.
            mask: (B, T + A) bool over the cached and the new tokens.
            next_position: (B,) position of the first new token.
            cache: filled by ``prefill``; appended in place.
        """
        positions = next_position[:, None] + torch.arange(ids.shape[1], device=ids.device)
        if self.family.rotary_3d:
            positions = positions.expand(3, -1, -1)
        return self.model.model(
            inputs_embeds=self.model.get_input_embeddings()(ids),
            attention_mask=self._attention_masks(mask, ids.shape[1], cache),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state

    def _needs_masks(self, mask: torch.Tensor, token_types: torch.Tensor | None) -> bool:
        """Whether whole prompts are run with masks of ours; the model's own are left where they are better.

        Without padding and images that see all of themselves it needs none at all, and its causal kernels are
        faster. An image longer than the window is read as each release of transformers reads it.

        Args:
            mask: (B, T) bool, on the CPU.
            token_types: (B, T), on the CPU, or None.
        """
        if token_types is None:
            return not bool(mask.all())
        image = _images(token_types == 1)
        longest = torch.zeros_like(image).scatter_add_(1, image, image.clamp(max=1)).max()
        return self._window is None or int(longest) <= self._window

    def _attention_masks(
        self, mask: torch.Tensor, n_new: int, cache: Any, token_types: torch.Tensor | None = None
    ) -> Any:
        """Which keys the ``n_new`` last of the positions in ``mask`` (B, S) see: (B, 1, n_new, keys) by layer type.

        The model would derive the same from ``mask``, at a tenth of a small model's training step; where padding lies
        between shared tokens and a row's own it could not, since its windows count padding. The cache of a sliding
        layer keeps no more of what was there before than its window, so its keys are the last ones, unless the cache
        says how many positions it has ``dropped``.

        Args:
            mask: True at real tokens, cached and new.
            n_new: number of new tokens.
            cache: what holds the others.
            token_types: (B, n_new), 1 at image tokens, which see all of their own image.
        """
        n_all = mask.shape[1]
        key = torch.arange(n_all, device=mask.device)
        full = ((key <= key[n_all - n_new :, None]) & mask[:, None, :])[:, None]
        if token_types is not None:
            full[..., n_all - n_new :] |= _same_image(token_types == 1)[:, None]
        if not self.family.masks_by_layer_type:
            return full
        masks = {"full_attention": full}
        if (window := self._window) is not None:
            order = mask.cumsum(-1)
            near = (order[:, None, :] > order[:, n_all - n_new :, None] - window)[:, None]
            dropped = getattr(cache, "dropped", max(0, n_all - n_new - (window - 1)))
            masks["sliding_attention"] = (full & near)[..., dropped:]
        return masks


def _images(is_image: torch.Tensor) -> torch.Tensor:
    """Which run of image tokens each position lies in, from 1, or 0 for none: (B, T) bool gives (B, T) int64."""
    starts = is_image & ~F.pad(is_image, (1, 0))[:, :-1]
    return starts.cumsum(-1).masked_fill(~is_image, 0)


def _same_image(is_image: torch.Tensor) -> torch.Tensor:
    """Whether two positions lie in one run of image tokens: (B, T) bool gives (B, T, T)."""
    image = _images(is_image)
    return (image[:, :, None] == image[:, None, :]) & is_image[:, :, None]


def load_backbone(settings: Mapping[str, Any]) -> Backbone:
    """Load a frozen backbone from a ``save_pretrained`` folder or the hub.

    Weights must be safetensors, complete and finite (see ``load_checkpoint``), and no code from the checkpoint is run.

    Args:
        settings: ``backbones.<name>`` of the config: path, revision, dtype, device (see `claim_device`), instruction,
            image, compile.

    Raises:
        ValueError: the device is not available, the family is unknown, the chat template cannot be used (see
            ``PromptBuilder``), or the weights are not all there and finite.
        OSError: nothing loadable at ``path``.
        DamageError: a file differs from its checksum, where one is known (see `check_model`).
        RuntimeError: the device has no room for the model.
    """
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    path, revision = settings["path"], settings.get("revision")
    if Path(path).parts[0] in ("models", "..", "/") and not Path(path).is_dir():
        raise OSError(f"backbones: no model folder at {path}; build it with snakemake or correct backbones.<name>.path")
    device = claim_device(settings.get("device", "auto"))
    check_model(path, revision)
    shared = {"revision": revision, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(path, **shared)
    wrong = [f"image.{name}: {text}" for name, text in image_errors(config.model_type, settings.get("image") or {})]
    if problem := unsupported(config.model_type):
        wrong.insert(0, f"path: {problem}")
    if wrong:
        raise ValueError("\n".join(f"backbones.*.{line}" for line in wrong))
    tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **shared)
    unread = family_of(config.model_type, tokenizer).unread
    dtype = getattr(torch, settings.get("dtype", "float32"))
    model = load_checkpoint(path, revision, config, dtype, device, unread)
    backbone = Backbone(
        model,
        tokenizer,
        settings["instruction"],
        source=str(path),
        revision=revision,
        image=settings.get("image"),
    )
    if settings.get("compile"):
        backbone.compile()
    return backbone
