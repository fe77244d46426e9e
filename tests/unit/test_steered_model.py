"""What ``attach`` returns: the model in everything but the adapter, which it saves, publishes, moves and takes away."""

import copy
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, pipeline
from transformers.models.auto.modeling_auto import AutoModelForImageTextToText
from transformers.models.auto.tokenization_auto import AutoTokenizer

from dive.backbones.layers import find_decoder_layers
from dive.files import check_files, read_json, record_checksums
from dive.steering import attach
from dive.steering.adapters import describe_backbone, save_adapter, weights_digest
from dive.steering.attach import Steering
from dive.steering.base import build_intervention
from dive.steering.steered import SteeredModel
from tests.unit.tiny_models import REPORTS, image

DIVE = {"module": "dive", "title": "DIVE: ours", "rank": 3, "layers": "all", "positions": "answer"}
LORA = {"module": "lora", "rank": 2, "alpha": 4.0, "dropout": 0.5, "layers": [1], "positions": "answer"}
OWN = ("generate", "save_pretrained", "push_to_hub", "__deepcopy__", "__reduce_ex__", "forward")


@pytest.fixture(scope="module", params=["gemma3", "qwen2_5_vl"])
def folder(request, tiny_settings) -> str:
    return tiny_settings(request.param)["path"]


def load(folder: str, **settings) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(folder, **settings).eval().requires_grad_(False)


@pytest.fixture
def model(folder) -> PreTrainedModel:
    return load(folder)


@pytest.fixture(scope="module")
def inputs(folder) -> dict[str, torch.Tensor]:
    """A chat without an image."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(f"{REPORTS[1]} {REPORTS[1]}", return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def trained(method=DIVE, model=None):
    """An intervention that does something."""
    shape = None
    if model is not None:
        from dive.steering.attention import look_inside

        shape = lambda: look_inside(model, find_decoder_layers(model))[0].shape  # noqa: E731
    intervention = build_intervention(method, 3, 32, 0, shape)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=draw))
    return intervention


def write(model, path: Path, source: str = "google/medgemma-4b-it", **data) -> Path:
    """An adapter folder as training leaves it."""
    path.mkdir()
    described = describe_backbone(model, find_decoder_layers(model), source)
    data = {"dataset": "mimic-cxr", "queries": 100, **data}
    save_adapter(path, trained(), DIVE, described, data, 2, {"seed": 0}, {"validation cross-entropy": 1.25})
    (path / "training.csv").write_text("step,loss\n1,2.0\n")
    (path / "validation.csv").write_text("epoch,loss\n1,2.0\n")
    record_checksums(path, "training.csv", "validation.csv")
    return path


def written(model, inputs, **settings) -> list[list[int]]:
    return model.generate(**inputs, max_new_tokens=8, do_sample=False, **settings).tolist()


def has_own_methods(model) -> bool:
    layers = find_decoder_layers(model)
    hooks = [hook for module in (model, *layers) for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    return not hooks and not [name for name in OWN if name in vars(model)]


# Beginning and end


def test_detaching_gives_the_model_its_own_methods_again(model, inputs, tmp_path):
    before = written(model, inputs)
    steered = attach(model, trained())
    assert written(steered, inputs) == written(model, inputs) != before  # by either name
    assert steered.detach() is model
    assert has_own_methods(model)
    assert written(model, inputs) == before
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert written(load(tmp_path), inputs) == before


def test_a_method_that_somebody_has_put_on_the_model_is_there_again(model):
    def own(*args, **kwargs):
        return "own"

    model.generate = own
    attach(model, trained()).detach()
    assert vars(model)["generate"] is own
    del model.generate
    steered = attach(model, trained())
    model.generate = own
    steered.detach()
    assert vars(model)["generate"] is own


def test_what_is_left_of_an_ended_steering_can_be_steered_again(model, inputs):
    with attach(model, trained()) as ended:
        expected = written(ended, inputs)
    with attach(ended, trained()) as steered:
        assert written(steered, inputs) == expected
        assert steered.model is model
    assert has_own_methods(model)


def test_a_with_block_ends_the_steering_however_it_ends(model, inputs):
    before = written(model, inputs)
    with attach(model, trained()) as steered:
        assert isinstance(steered, SteeredModel)
        assert written(steered, inputs) != before
    assert has_own_methods(model)
    with pytest.raises(KeyError), attach(model, trained()) as steered:
        raise KeyError
    assert has_own_methods(model)
    with attach(model, trained()) as steered:
        steered.detach()
        with attach(model, trained()) as second:
            steered.detach()  # once more: the second one stays
            assert written(second, inputs) != before
    assert has_own_methods(model)


def test_an_error_while_generating_leaves_nothing_behind(model, inputs):
    with attach(model, trained()) as steered:
        expected = written(steered, inputs)
        with pytest.raises(ValueError, match="pad on the left"):
            steered.generate(inputs["input_ids"], attention_mask=torch.zeros_like(inputs["attention_mask"]))
        with pytest.raises(TypeError):
            steered.generate(inputs["input_ids"], stopping_criteria=[lambda *_: 1 / "a"], max_new_tokens=2)
        assert steered.steering.by_rule
        assert written(steered, inputs) == expected


def test_an_attachment_that_fails_half_way_leaves_nothing_behind(model):
    intervention = trained()
    intervention.layers["2"].site = "nowhere"
    intervention.layers["0"].site = "layer"
    layers = find_decoder_layers(model)
    with pytest.raises(ValueError, match="no site of a decoder layer"):
        Steering(layers, intervention, [None] * 3, model)
    assert has_own_methods(model)
    attach(model, trained()).detach()


# The model, to all appearances


def test_it_passes_for_a_model_of_its_class(model):
    with attach(model, trained()) as steered:
        assert isinstance(steered, PreTrainedModel)
        assert isinstance(steered, type(model))
        assert isinstance(steered, nn.Module)
        assert isinstance(steered, SteeredModel)
        assert {"detach", "steering", "save_pretrained", "generate", "lm_head", "config"} <= set(dir(steered))
        assert repr(steered).startswith("SteeredModel(")
        assert len(list(steered.parameters())) == len(list(model.parameters()))
        assert steered.state_dict().keys() == model.state_dict().keys()
        steered.config.use_cache = True
        steered.note = "kept by the model"
        assert model.note == "kept by the model"
        del steered.note
        assert not hasattr(model, "note")
        with pytest.raises(AttributeError):
            steered.nothing  # noqa: B018


def test_methods_that_return_the_model_return_the_steered_one_and_take_the_adapter_along(model, inputs):
    intervention = trained(LORA, model)
    with attach(model, intervention) as steered:
        expected = written(steered, inputs)
        assert steered.to("cpu") is steered.eval() is steered.requires_grad_(False) is steered.cpu() is steered
        assert steered.train() is steered
        assert intervention.training
        assert model.training
        assert steered.eval() is steered
        assert not intervention.training
        assert steered.half() is steered
        assert steered.dtype == torch.float16
        assert {parameter.dtype for parameter in intervention.parameters()} == {torch.float32}
        assert written(steered, inputs)
        assert steered.bfloat16() is steered
        assert written(steered, inputs)
        steered.float()
        assert len(written(steered, inputs)[0]) == len(expected[0])


def test_the_adapter_goes_where_the_states_are(model, inputs):
    """On a machine without a second device its place is told by the device that holds no numbers."""
    intervention = trained()
    with attach(model, intervention) as steered:
        expected = written(steered, inputs)
        moved: list[tuple[int, torch.device]] = []
        original = steered.steering._move
        steered.steering._devices = {0: torch.device("meta"), 1: torch.device("cpu"), 2: torch.device("cpu")}
        steered.steering._move = lambda *place: (moved.append(place), original(*place))
        assert written(steered, inputs) == expected
        assert moved == [(0, torch.device("cpu"))]


def test_a_deep_copy_is_steered_by_itself_and_a_pickle_is_refused(model, inputs):
    intervention = trained()
    with attach(model, intervention) as steered:
        expected = written(steered, inputs)
        copied = copy.deepcopy(steered)
        assert written(copied, inputs) == expected
        for parameter in copied.steering.intervention.parameters():
            parameter.data.zero_()
        assert written(copied, inputs) != expected
        plain = copied.detach()
        assert has_own_methods(plain)
        assert written(steered, inputs) == expected != written(plain, inputs)
        for made in (steered, model):
            with pytest.raises(TypeError, match="pickled"):
                pickle.dumps(made)
        with pytest.raises(TypeError, match="pickled"):
            copy.copy(steered)
        with pytest.raises(TypeError, match="detach"):
            copy.deepcopy(model)
    assert written(copy.deepcopy(model), inputs) != expected


def test_a_graph_that_was_compiled_before_does_not_hide_the_adapter(folder, inputs):
    if "gemma3" not in folder:
        pytest.skip("one family is enough for what does not look at the model, and compiling is slow")
    model = load(folder)
    decoder = model.model.language_model

    def last() -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).logits[0, -1]

    before = last()
    with attach(model, trained()):
        expected = last()
    decoder.compile(backend="eager")
    torch.testing.assert_close(last(), before)
    with attach(model, trained()):
        torch.testing.assert_close(last(), expected)
    torch.testing.assert_close(last(), before)
    assert not torch.allclose(before, expected)


def test_a_pipeline_of_a_steered_model(folder, inputs):
    from transformers import AutoProcessor

    if "gemma3" not in folder:
        pytest.skip("the processor of Qwen 2.5-VL needs torchvision")
    chat = [{"role": "user", "content": [{"type": "image", "image": image(0)}, {"type": "text", "text": "Write."}]}]
    model, processor = load(folder), AutoProcessor.from_pretrained(folder)

    def answer(of) -> str:
        made = pipeline("image-text-to-text", model=of, processor=processor)
        (found,) = made(text=chat, max_new_tokens=8, return_full_text=False, generate_kwargs={"do_sample": False})
        return found["generated_text"]

    before = answer(model)
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    given = processor(text=prompt, images=[image(0)], add_special_tokens=False, return_tensors="pt")
    with attach(model, trained()) as steered:
        ids = steered.generate(**given, max_new_tokens=8, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert answer(steered) == processor.decode(ids, skip_special_tokens=True) != before
    assert answer(model) == before


# Offloaded parameters


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_offloaded_parameters_are_steered_and_known_by_their_numbers(folder, model, inputs, tmp_path, kind):
    accelerate = pytest.importorskip("accelerate")
    adapter = write(model, tmp_path / "adapter")
    digest = weights_digest(find_decoder_layers(model))
    with attach(model, adapter) as steered:
        expected = written(steered, inputs)
    offloaded = load(folder)
    if kind == "memory":
        accelerate.cpu_offload(offloaded, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(offloaded, tmp_path / "parameters", execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    with attach(offloaded, adapter) as steered:
        assert written(steered, inputs) == expected
        assert {parameter.device.type for parameter in steered.steering.intervention.parameters()} == {"cpu"}
    assert weights_digest(find_decoder_layers(offloaded)) == digest
    other = trained()
    with pytest.raises(ValueError, match=r"device meta.*load them"), torch.device("meta"):
        attach(type(model)(model.config), other)


# The adapter is what is saved


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_saving_writes_the_adapter_and_not_the_backbone(model, inputs, tmp_path):
    adapter = write(model, tmp_path / "adapter", credentialed=False)
    with attach(model, adapter) as steered:
        expected = written(steered, inputs)
        steered.save_pretrained(tmp_path / "a" / "saved", scores={"BLEU-4": 12.5}, license="mit")
        steered.save_pretrained(adapter)  # over itself
    saved = tmp_path / "a" / "saved"
    assert files(saved) == files(adapter) == WRITTEN
    first, second = (load_file(path / "adapter.safetensors") for path in (adapter, saved))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sum(path.stat().st_size for path in saved.iterdir()) < 20_000
    was, now = (read_json(path / "config.json") for path in (adapter, saved))
    assert was.pop("scores") == {"validation cross-entropy": 1.25}
    assert now.pop("scores") == {"validation cross-entropy": 1.25, "BLEU-4": 12.5}
    assert was == now
    check_files(saved)
    with attach(model, saved) as steered:
        assert written(steered, inputs) == expected


WRITTEN = [
    "README.md",
    "adapter.safetensors",
    "checksums.json",
    "config.json",
    "training.csv",
    "validation.csv",
]


def test_an_adapter_replaces_nobody_else_s_config(model, folder, tmp_path):
    with attach(model, write(model, tmp_path / "adapter")) as steered:
        steered.save_pretrained(tmp_path / "saved")
        steered.save_pretrained(tmp_path / "saved")  # its own may be replaced
        for name, content in {"config.json": "{}", "model-00001-of-00002.safetensors": ""}.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / name).write_text(content)
            with pytest.raises(ValueError, match="give a folder of its own"):
                steered.save_pretrained(tmp_path / name)
            assert files(tmp_path / name) == [name]


def test_the_card_says_backbone_licence_data_and_scores(model, tmp_path):
    adapter = write(model, tmp_path / "adapter", credentialed=False)
    with attach(model, adapter) as steered:
        steered.save_pretrained(tmp_path / "saved", scores={"BLEU-4": 12.5}, license="mit")
    for folder, licence, scores in (
        (adapter, "other", {"validation cross-entropy": 1.25}),
        (tmp_path / "saved", "mit", {"validation cross-entropy": 1.25, "BLEU-4": 12.5}),
    ):
        _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        said = yaml.safe_load(head)
        assert said["base_model"] == "google/medgemma-4b-it"
        assert said["license"] == licence
        assert said["datasets"] == ["mimic-cxr"]
        assert said["library_name"] == "dive"
        (index,) = said["model-index"]
        assert index["name"] == "DIVE: ours on google/medgemma-4b-it"
        (result,) = index["results"]
        assert {metric["name"]: metric["value"] for metric in result["metrics"]} == scores
        assert all(f"- {name}: {value}\n" in text for name, value in scores.items())
        assert "synthetic" in text
        huggingface_hub.ModelCard(f"---\n{head}---\n{text}")  # what the hub reads


def test_a_card_names_no_backbone_on_the_hub_where_there_is_none(model, tmp_path):
    adapter = write(model, tmp_path / "adapter", source="models/tiny-gemma3")
    _, head, text = (adapter / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert "base_model" not in yaml.safe_load(head)
    assert "may forbid sharing" in text


def test_an_adapter_without_a_folder_cannot_be_saved_and_only_safetensors_are_written(model, tmp_path):
    with attach(model, trained()) as steered, pytest.raises(ValueError, match="save_adapter"):
        steered.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with attach(model, write(model, tmp_path / "adapter")) as steered:
        with pytest.raises(ValueError, match="safetensors"):
            steered.save_pretrained(tmp_path / "saved", safe_serialization=False)
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="is a file"):
            steered.save_pretrained(tmp_path / "file")


# The hub


@pytest.fixture
def hub(monkeypatch, tmp_path) -> dict[str, Path]:
    """A hub in a folder: repositories by name."""
    made: dict[str, Path] = {}

    def create_repo(self, repo_id, **settings):
        made.setdefault(repo_id, tmp_path / "hub" / repo_id)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, **settings):
        made[repo_id].mkdir(parents=True)
        for path in Path(folder_path).iterdir():
            (made[repo_id] / path.name).write_bytes(path.read_bytes())
        return "a commit"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return made


def test_publishing_uploads_the_adapter_alone(model, hub, tmp_path):
    with attach(model, write(model, tmp_path / "adapter", credentialed=False)) as steered:
        assert steered.push_to_hub("user/dive", scores={"BLEU-4": 12.5}) == "a commit"
    assert files(hub["user/dive"]) == WRITTEN


@pytest.mark.parametrize("data", [{"credentialed": True}, {}, {"credentialed": None}, {"credentialed": "false"}])
def test_what_credentialed_data_taught_is_not_published_by_mistake(model, hub, tmp_path, data):
    with attach(model, write(model, tmp_path / "adapter", **data)) as steered:
        with pytest.raises(ValueError, match="allow_credentialed=True"):
            steered.push_to_hub("user/dive")
        assert not hub
        steered.save_pretrained(tmp_path / "saved")  # the record stays with the adapter
    with attach(model, tmp_path / "saved") as steered:
        with pytest.raises(ValueError, match="allow_credentialed=True"):
            steered.push_to_hub("user/dive")
        steered.push_to_hub("user/dive", allow_credentialed=True)
    assert list(hub) == ["user/dive"]


def cached(root: Path, repository: str, source: Path) -> None:
    """Put a repository into a hub cache, as a download leaves it."""
    base = root / f"models--{repository.replace('/', '--')}"
    snapshot = base / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for path in source.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("0" * 40)


def test_an_adapter_of_the_hub(model, inputs, tmp_path, monkeypatch):
    adapter = write(model, tmp_path / "adapter", credentialed=False)
    cached(tmp_path / "cache", "user/dive", adapter)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with attach(model, adapter) as steered:
        expected = written(steered, inputs)
    with attach(model, "user/dive") as steered:
        assert written(steered, inputs) == expected
        steered.save_pretrained(tmp_path / "saved")
    assert files(tmp_path / "saved") == files(adapter)
    with pytest.raises(ValueError, match=r"user/other: no folder.*HF_HUB_OFFLINE=0"):
        attach(model, "user/other")
    with pytest.raises(ValueError, match="user/dive"):
        attach(model, "user/dive", revision="v2")
    assert has_own_methods(model)


def test_of_a_repository_neither_code_nor_pickles_are_fetched(model, tmp_path, monkeypatch):
    adapter = write(model, tmp_path / "adapter")
    asked = {}

    def download(repo_id, **settings):
        asked.update(settings, repo_id=repo_id)
        return str(adapter)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    attach(model, "user/dive", revision="v2").detach()
    assert (asked["repo_id"], asked["revision"]) == ("user/dive", "v2")
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*", ".pkl")) for pattern in asked["allow_patterns"])
    monkeypatch.chdir(tmp_path)
    asked.clear()
    (tmp_path / "user").mkdir()
    adapter.rename(tmp_path / "user" / "dive")
    attach(model, "user/dive").detach()  # a folder of that name comes first
    assert not asked
