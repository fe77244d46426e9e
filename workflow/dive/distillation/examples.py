"""What a method without gradients, or one that starts from data, is fitted on: states of the training queries."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from dive.backbones.loading import Backbone, ImageFeatures
from dive.backbones.prompts import Prompt
from dive.distillation.cache import explained_memory, predicting_mask
from dive.progress import progress
from dive.steering.attention import look_inside
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
    ) -> None:
        self.backbone, self.uids, self.prompts, self.features = backbone, uids, prompts, features
        self.batch_size, self.seed, self.taught = batch_size, seed, taught
        self.n_positions = [prompt.n_labels for prompt in prompts]

    @torch.no_grad()
    def zero_shot(self, sites: Sequence[str] = ("layer",)) -> Iterator[tuple[str, States]]:
        """Run every query without demonstrations and without steering.

        Args:
            sites: what to record, see ``Recording``: ``layer``, ``attention``, ``mlp``, ``heads``.

        Yields:
            study_uid, and by site the states of all layers at its predicting positions p-1 .. p+T-1, (L, n, width):
            the first is the last prompt token's, the last the report's last token's.
        """
        layers = self.backbone.layers
        inside = None if tuple(sites) == ("layer",) else look_inside(self.backbone.model, layers)
        order = sorted(range(len(self.uids)), key=lambda row: -len(self.prompts[row].ids))
        for begin in progress(range(0, len(order), self.batch_size), "fitting batches"):
            rows = order[begin : begin + self.batch_size]
            prompts = [self.prompts[row] for row in rows]
            batch = self.backbone.collate(prompts, self.features, part="full")
            with explained_memory("backbones.*.batch.training"), Recording(layers, sites, inside) as recording:
                self.backbone.prefill(batch)
                mask = predicting_mask(prompts, batch.mask.shape[1]).to(batch.mask.device)
                states = {site: recording.at(mask, site) for site in sites}
            lengths = [prompt.n_labels for prompt in prompts]
            parts = {site: of_site.split(lengths, dim=1) for site, of_site in states.items()}
            for position, row in enumerate(rows):
                yield self.uids[row], {site: parts[site][position] for site in sites}

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
