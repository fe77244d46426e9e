"""The card of an adapter folder: README.md with the head that the Hugging Face hub reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dive.steering.base import Intervention

PARTS = {
    "layer": "the outputs",
    "heads": "the attention heads",
    "attention": "the attention outputs",
    "mlp": "the MLP outputs",
    "projections": "the attention projections",
}

CARD = """---
{head}
---

# {title} on {backbone}

This adapter steers the frozen backbone `{backbone}` when it writes radiology reports. The method is `{module}`. It has
{parameters:,} parameters, on {parts} of decoder layers {sites}. Steered positions: {positions}. The adapter does not
change the backbone and does not contain it.

```python
from dive.steering import attach

model = attach(AutoModelForImageTextToText.from_pretrained("{backbone}"), "<this folder or repository>")
model.generate(**inputs, do_sample=False)
model = model.detach()
```

- `adapter.safetensors`: the parameters, float32.
- `config.json`: method, steered layers, backbone (checked when the folder is loaded), versions, training data by name.
- `training.csv`, `validation.csv`, where the adapter was trained: the course of training. The kept state has the least
  cross-entropy of report and terminator on validation studies (epoch {epoch}).

## Training data

{queries} studies of {dataset}. {terms}

## Scores

{scores}

## Use and licence

For research on report generation. No radiologist has checked the reports of this model, and they must not guide care.
They inherit the limits of the backbone and of the reports that the adapter was distilled on.
{licence}
"""

TERMS = {
    True: "These data come with terms of use that may forbid sharing what was made from them, this adapter included.",
    False: "These data are synthetic: they come from no patient, and everybody may have them.",
}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def write_card(path: Path, intervention: Intervention, config: Mapping[str, Any], license: str | None = None) -> None:
    """Write the card of an adapter.

    Args:
        path: the file.
        intervention: the adapter.
        config: ``config.json`` of its folder.
        license: identifier of a licence; otherwise the card says whose terms apply.
    """
    from huggingface_hub import EvalResult, ModelCardData

    # Of a foreign folder nothing but the method has been checked.
    method, data, scores = (_mapping(config.get(key)) for key in ("method", "data", "scores"))
    backbone, dataset = str(_mapping(config.get("backbone")).get("id")), str(data.get("dataset"))
    scores = {str(name): value for name, value in scores.items() if isinstance(value, int | float)}
    is_on_hub = backbone.count("/") == 1 and backbone.split("/")[0] not in ("", "..", "models")
    title = str(method.get("title", method["module"]))
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=name.lower().replace(" ", "_"),
            metric_name=name,
            metric_value=value,
        )
        for name, value in scores.items()
    ]
    terms = {"license": license} if license else {"license": "other", "license_name": "terms-of-backbone-and-data"}
    head = ModelCardData(
        model_name=f"{title} on {backbone}",
        library_name="dive",
        pipeline_tag="image-text-to-text",
        tags=["steering", "in-context-vector-distillation", "radiology-report-generation"],
        base_model=backbone if is_on_hub else None,
        datasets=[dataset],
        eval_results=results or None,
        **terms,
    )
    sites = intervention.sites
    consecutive = sites == list(range(sites[0], sites[-1] + 1))
    text = CARD.format(
        head=head.to_yaml(),
        title=title,
        backbone=backbone,
        module=method["module"],
        parameters=intervention.n_parameters,
        parts=" and ".join(PARTS[site] for site in intervention.at(sites[0])),
        sites=f"{sites[0]} to {sites[-1]}" if consecutive else ", ".join(map(str, sites)),
        positions=intervention.positions,
        epoch=config.get("epoch"),
        queries=data.get("queries"),
        dataset=dataset,
        terms=TERMS[data.get("credentialed") is not False],
        scores="\n".join(f"- {name}: {value:.6g}" for name, value in scores.items()) or "None is recorded.",
        licence=f"Licence: {license}." if license else "The terms of the backbone and of the training data apply.",
    )
    path.write_text(text, encoding="utf-8")
