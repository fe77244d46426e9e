"""I2CL equals its equation; its context vectors are the states of a plain run."""

from types import SimpleNamespace

import pytest
import torch

from dive.backbones.loading import load_backbone
from dive.distillation.examples import Examples
from dive.steering import attach
from dive.steering.attention import look_inside
from dive.steering.base import build_intervention, fit_of
from tests.unit.tiny_models import FAMILIES, REPORTS, image, plain_inputs

I2CL = {"module": "i2cl", "strength": 0.1, "noise": 0.001, "layers": "all", "positions": "answer"}


def test_i2cl_is_its_equation():
    site = build_intervention(I2CL, 2, 32, 0).at(1)["mlp"].eval()
    draw = torch.Generator().manual_seed(1)
    site.v.copy_(torch.randn(32, generator=draw))
    output = 5 * torch.randn(4, 32, generator=draw)
    with torch.no_grad():
        site.beta.fill_(0.7)
        site.lam.fill_(-1.3)
    v = site.v.double().tolist()
    for o, found in zip(output.double().tolist(), site(output).tolist(), strict=True):
        assert found == pytest.approx([0.7 * x - 1.3 * y for x, y in zip(o, v, strict=True)], abs=1e-5)
    assert site(output.bfloat16()).dtype == torch.bfloat16


def test_noise_only_while_it_is_trained_and_in_units_of_the_norm():
    site = build_intervention({**I2CL, "noise": 0.01}, 1, 4096, 0).at(0)["attention"]
    output = 3 * torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    noise = (site.train()(output) - output).detach()
    assert torch.equal(site.eval()(output), output)  # v is 0 before the fit, beta is 1
    torch.testing.assert_close(noise.std(dim=-1), 0.01 * output.norm(dim=-1), rtol=0.05, atol=0)


@pytest.mark.parametrize("n_layers", [34, 28])
def test_four_parameters_a_layer_and_the_published_start(n_layers):
    intervention = build_intervention(I2CL, n_layers, 8, 0)
    assert intervention.n_parameters == 4 * n_layers
    site = intervention.at(0)["attention"]
    assert float(site.beta.detach()) == 1
    assert float(site.lam.detach()) == pytest.approx(0.1)


def outputs_at_the_end(backbone, inputs):
    """Outputs of attention and MLP of all layers at the last position of one plain forward pass: {site: (L, d)}."""
    found: dict[str, list[torch.Tensor]] = {"attention": [], "mlp": []}
    handles = []
    for inside in look_inside(backbone.model, backbone.layers):
        for site, states in found.items():

            def keep(module, args, output, states=states):
                states.append((output[0] if isinstance(output, tuple) else output)[0, -1])

            handles.append(getattr(inside, site).register_forward_hook(keep))
    backbone.model(**inputs)
    for handle in handles:
        handle.remove()
    return {site: torch.stack(states) for site, states in found.items()}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_context_vectors_are_means_over_the_last_tokens(family, tiny_settings):
    backbone = load_backbone(tiny_settings(family))
    pictures = {"a": image(1).convert("RGB"), "b": image(2).convert("RGB")}
    features = {key: backbone.embed_images([picture])[0] for key, picture in pictures.items()}
    counts = {key: len(feature.tokens) for key, feature in features.items()}
    prompts = [backbone.prompts.render(key, counts, report=REPORTS[row]) for row, key in enumerate("ab")]
    examples = Examples(backbone, ["a", "b"], prompts, features, batch_size=2, seed=0)
    intervention = build_intervention(I2CL, 3, 32, 0)
    fit_of(I2CL)(intervention, examples)

    # The same from pixels, one prompt at a time.
    def inputs_until(prompt, stop):
        return plain_inputs(backbone, SimpleNamespace(ids=prompt.ids[:stop], images=prompt.images), pictures)

    ends = [
        outputs_at_the_end(backbone, inputs_until(prompt, prompt.prompt_length - 1 + prompt.n_labels))
        for prompt in prompts
    ]
    for site in ("attention", "mlp"):
        expected = (ends[0][site] + ends[1][site]) / 2
        for layer in range(3):
            torch.testing.assert_close(intervention.at(layer)[site].v, expected[layer], atol=1e-4, rtol=0)

    # Attached, it steers; and what it was fitted with goes with the state.
    inputs = inputs_until(prompts[0], -5)
    before = backbone.model(**inputs).logits
    model = attach(backbone.model, intervention)
    after = model(**inputs).logits
    model.detach()
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])
    assert "layers.0.mlp.v" in intervention.state_dict()
