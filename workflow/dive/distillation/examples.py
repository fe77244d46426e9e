"""Training data for methods that are fitted in closed form or initialised from data: states of the training queries."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch

from dive.backbones.loading import Backbone, ImageFeatures
from dive.backbones.prompts import Prompt
from dive.devices import explained_memory
from dive.distillation.cache import finite_parts, predicting_mask
from dive.distillation.losses import token_cross_entropy
from dive.progress import progress
from dive.steering.attach import Steering
from dive.steering.attention import Inside, look_inside
from dive.steering.base import Intervention
from dive.steering.recording import Recording

States = dict[str, torch.Tensor]


class Examples:
    """The training queries, given to ``fit(intervention, examples)`` of a steering module before any training.

    Args:
        backbone: the frozen model; nothing steers it while a method is fitted.
        uids: study_uid of the queries.
        prompts: their prompts with reports, without demonstrations.
        features: image features by key.
        batch_size: prompts run at once.
        seed: of the run; draw from ``torch_stream(examples.seed, "fit")``.
        taught: the cached teacher's states by study_uid, (L, n, width) each, or None where no method setting asks
            for them.
        shown: the prompts with demonstrations and reports, or None where the method does not run them.

    Attributes:
        n_positions: predicting positions n of each query: T + 1, or T for a cut report.
    """

    def __init__(
        self,
        backbone: Backbone,
        uids: Sequence[str],
        prompts: Sequence[Prompt],
        features: Mapping[str, ImageFeatures],
        batch_size: int,
        seed: int,
        taught: Mapping[str, torch.Tensor] | None = None,
        shown: Sequence[Prompt] | None = None,
    ) -> None:
        self.backbone, self.uids, self.prompts, self.features = backbone, uids, prompts, features
        self.batch_size, self.seed, self.taught = batch_size, seed, taught
        self.shown = shown
        self.n_positions = [prompt.n_labels for prompt in prompts]

    @cached_property
    def inside(self) -> list[Inside]:
        """The parts of the decoder layers."""
        return look_inside(self.backbone.model, self.backbone.layers)

    def zero_shot(self, sites: Sequence[str] = ("layer",)) -> Iterator[tuple[str, States]]:
        """Run every query without demonstrations and without steering.

        Args:
            sites: what to record, see ``Recording``: ``layer``, ``attention``, ``mlp``, ``heads``.

        Yields:
            study_uid, and by site the states of all layers at its predicting positions p-1 .. p+T-1, (L, n, width):
            the first is the last prompt token's, the last the report's last token's.
        """
        yield from self._states(self.prompts, sites)

    def in_context(self, sites: Sequence[str], count: int) -> Iterator[tuple[str, States]]:
        """The same as ``zero_shot`` of the first ``count`` queries, each with its K demonstrations in context.

        Raises:
            ValueError: the module does not say ``READS_DEMONSTRATIONS``, so that none are given.
        """
        if self.shown is None:
            raise ValueError("the method needs prompts with demonstrations, but none are given")
        yield from self._states(self.shown[:count], sites)

    @torch.no_grad()
    def _states(self, shown: Sequence[Prompt], sites: Sequence[str]) -> Iterator[tuple[str, States]]:
        layers = self.backbone.layers
        inside = None if tuple(sites) == ("layer",) else self.inside
        order = sorted(range(len(shown)), key=lambda row: -len(shown[row].ids))
        shared = self.backbone.share(shown, self.features)
        for begin in progress(range(0, len(order), self.batch_size), "fitting batches"):
            rows = order[begin : begin + self.batch_size]
            prompts = [shown[row] for row in rows]
            batch = self.backbone.collate(prompts, self.features, part="full", shared=shared)
            with explained_memory("backbones.*.batch.training"), Recording(layers, sites, inside) as recording:
                self.backbone.prefill(batch, shared and shared.new_cache())
                mask = predicting_mask(prompts, batch.mask.shape[1])
                states = {site: recording.at(mask, site) for site in sites}
            parts = {site: finite_parts(self.backbone, prompts, of_site, dim=1) for site, of_site in states.items()}
            for position, row in enumerate(rows):
                yield self.uids[row], {site: parts[site][position] for site in sites}

    @torch.no_grad()
    @explained_memory("backbones.*.batch.training")
    def cross_entropy(self, intervention: Intervention, rows: Sequence[int]) -> torch.Tensor:
        """What steered reading costs: mean cross-entropy of each report and its terminator.

        Args:
            intervention: at work at the predicting positions, or at all where its ``positions`` say so.
            rows: indices of queries, run at once; one may be there more than once.

        Returns:
            (len(rows),), float32.
        """
        prompts = [self.prompts[row] for row in rows]
        batch = self.backbone.collate(prompts, self.features, part="full")
        mask = predicting_mask(prompts, batch.mask.shape[1]).to(batch.mask.device)
        with (
            Steering(self.backbone.layers, intervention, self.inside) as steering,
            steering.at(batch.mask if intervention.positions == "all" else mask),
        ):
            states = self.backbone.prefill(batch)[mask]
        labels = torch.tensor([label for prompt in prompts for label in prompt.labels], device=states.device)
        losses = token_cross_entropy(states, labels, self.backbone.head)
        return torch.stack([part.mean() for part in losses.split([prompt.n_labels for prompt in prompts])])

    def teacher(self, uid: str) -> torch.Tensor:
        """The teacher's states of all layers at the same positions, (L, n, width).

        Raises:
            ValueError: they are not cached, or were cached with another tokenizer or limit.
        """
        if self.taught is None:
            raise ValueError("the method needs the teacher's layer states, but none are given")
        states = self.taught[uid]
        expected = self.n_positions[self.uids.index(uid)]
        if states.shape[1] != expected:
            raise ValueError(
                f"{uid}: the teacher has {states.shape[1]} states, the student {expected}; "
                "the layer cache was made with another tokenizer or max_report_tokens: remove it and run again"
            )
        return states.to(self.backbone.device)
