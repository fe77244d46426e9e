"""MTV replaces exactly the chosen heads by their mean in context, and its search finds the heads that help."""

from types import SimpleNamespace

import pytest
import torch

from dive.backbones.loading import load_backbone
from dive.distillation.examples import Examples
from dive.steering import attach
from dive.steering.attention import AttentionShape, Heads, look_inside
from dive.steering.base import build_intervention, fit_of
from dive.steering.mtv import cost, select
from tests.unit.tiny_models import FAMILIES, REPORTS, image, plain_inputs

MTV = {"module": "mtv", "prompts": 2, "steps": 4, "samples": 3, "rate": 0.1, "draws": 3, "layers": "all"}
SHAPE = AttentionShape(heads=4, kv_heads=2, head_dim=6, projections={})


def test_mtv_is_its_equation():
    site = build_intervention(MTV, 2, 32, 0, lambda: SHAPE).at(1)["heads"]
    draw = torch.Generator().manual_seed(1)
    site.v.copy_(torch.randn(4, 6, generator=draw))
    output = torch.randn(2, 3, 4, 6, generator=draw)
    heads = Heads(output, torch.zeros(2, 4, 3, 6), torch.zeros(2, 2, 3, 6), None, 1.0)
    assert torch.equal(site(heads), output.view(6, 4, 6))  # nothing is chosen: the zero-shot model
    site.s.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    found = site(heads)
    for n, row in enumerate(output.view(6, 4, 6).tolist()):
        for h, o in enumerate(row):
            assert found[n, h].tolist() == (site.v[h].tolist() if h in (1, 3) else o)
    with pytest.raises(ValueError, match="answer positions"):
        build_intervention({**MTV, "positions": "all"}, 2, 32, 0, lambda: SHAPE)


def test_the_search_finds_the_heads_that_help():
    """A made-up cost: 1 a wrong bit. 16 bits are right after 150 steps of REINFORCE."""
    wanted = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]])
    intervention = build_intervention({**MTV, "steps": 150, "samples": 8, "draws": 5}, 4, 32, 0, lambda: SHAPE)
    sites = [intervention.at(index)["heads"] for index in intervention.sites]

    def cross_entropy(intervention, rows):
        # Two positions a query: the bits of a selection are the same at both.
        bits = torch.stack([site.s.view(len(rows), 2, 4)[:, 0] for site in sites], dim=1)
        return (bits - wanted).abs().sum((1, 2))

    examples = SimpleNamespace(
        seed=0,
        prompts=[None] * 3,
        n_positions=[2] * 3,
        batch_size=3,
        in_context=lambda sites, count: iter([("a", {"heads": torch.ones(4, 2, 24)})]),
        cross_entropy=cross_entropy,
    )
    fit_of(MTV)(intervention, examples)
    found = torch.stack([site.s.view(-1, 4)[0] for site in sites])
    assert torch.equal(found, wanted)
    assert all(site.s.shape == (4,) for site in sites)
    assert torch.equal(sites[0].v, torch.ones(4, 6))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_means_and_costs_on_a_model(family, tiny_settings):
    backbone = load_backbone(tiny_settings(family))
    pictures = {key: image(row).convert("RGB") for row, key in enumerate("abc")}
    features = {key: backbone.embed_images([picture])[0] for key, picture in pictures.items()}
    counts = {key: len(feature.tokens) for key, feature in features.items()}
    prompts = [backbone.prompts.render(key, counts, report=REPORTS[row]) for row, key in enumerate("ab")]
    shown = [
        backbone.prompts.render(key, counts, [("c", REPORTS[2])], report=REPORTS[row]) for row, key in enumerate("ab")
    ]
    examples = Examples(backbone, ["a", "b"], prompts, features, batch_size=2, seed=0, shown=shown)
    inside = look_inside(backbone.model, backbone.layers)
    shape = inside[0].shape
    intervention = build_intervention(MTV, 3, 32, 0, lambda: shape)
    with torch.enable_grad():
        fit_of(MTV)(intervention, examples)

    # The mean of what the output projection is given at the last prompt token, from pixels, one prompt at a time.
    given: list[torch.Tensor] = []
    for prompt in shown:
        cut = SimpleNamespace(ids=prompt.ids[: prompt.prompt_length], images=prompt.images)
        rows: list[torch.Tensor] = []
        handles = [
            list(of_layer.projections.values())[-1].register_forward_pre_hook(
                lambda _, args, rows=rows: rows.append(args[0][0, -1])
            )
            for of_layer in inside
        ]
        backbone.model(**plain_inputs(backbone, cut, pictures))
        for handle in handles:
            handle.remove()
        given.append(torch.stack(rows))
    expected = torch.stack(given).mean(0).view(3, shape.heads, shape.head_dim)
    sites = [intervention.at(index)["heads"] for index in range(3)]
    torch.testing.assert_close(torch.stack([site.v for site in sites]), expected, atol=1e-5, rtol=1e-5)

    # Selections in one batch cost what each costs alone; none of the heads costs what the plain model does.
    drawn = torch.zeros(3, 3, shape.heads)
    drawn[1, :, 0] = 1
    drawn[2] = 1
    together = cost(sites, drawn, intervention, examples, 1)
    for selection, found in zip(drawn, together, strict=True):
        select(sites, selection)
        torch.testing.assert_close(examples.cross_entropy(intervention, [1])[0], found, atol=1e-5, rtol=1e-5)
    ids = prompts[1].ids[: prompts[1].prompt_length - 1 + prompts[1].n_labels]
    inputs = plain_inputs(backbone, SimpleNamespace(ids=ids, images=prompts[1].images), pictures)
    logits = backbone.model(**inputs).logits[0, -prompts[1].n_labels :]
    plain = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(prompts[1].labels))
    torch.testing.assert_close(together[0], plain, atol=1e-5, rtol=1e-5)
    assert len(set(together.tolist())) == 3

    select(sites, drawn[2])
    model = attach(backbone.model, intervention)
    after = model(**inputs).logits[0, -1]
    model.detach()
    assert not torch.equal(after, logits[-1])
