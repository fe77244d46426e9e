"""README.md is short and its links lead somewhere; the example of docs/adapters.md runs as it is written."""

import re
from pathlib import Path

import pytest
import torch

from dive.backbones.loading import load_backbone
from dive.steering.adapters import describe_backbone, save_adapter
from dive.steering.base import build_intervention
from tests.unit.tiny_models import image

ROOT = Path(__file__).resolve().parents[2]
DIVE = {"module": "dive", "rank": 4, "layers": "all", "positions": "answer"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_the_example_of_a_trained_adapter(tiny_settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    text = (ROOT / "docs/adapters.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL).group(1)

    backbone = load_backbone(tiny_settings("gemma3"))
    intervention = build_intervention(DIVE, 3, 32, 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=draw))
    adapter = tmp_path / "results/adapters/synthetic-mimic-cxr/tiny-gemma3/dive/seed0"
    adapter.mkdir(parents=True)
    described = describe_backbone(backbone.model, backbone.layers, backbone.source)
    data = {"dataset": "synthetic-mimic-cxr", "queries": 1}
    save_adapter(adapter, intervention, DIVE, described, data, epoch=1, record={})
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tiny-gemma3").symlink_to(backbone.source)
    image(0).save(tmp_path / "chest.jpg")

    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "docs/adapters.md", "exec"), names)
    # Untrained, so what it wrote means nothing; but it is not what the model writes once it is detached.
    plain = names["model"].generate(**names["inputs"], max_new_tokens=160)
    assert not torch.equal(plain, names["written"])
    assert capsys.readouterr().out
