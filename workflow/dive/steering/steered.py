"""The object that ``attach`` returns. It behaves like the model, except in the methods that concern the adapter."""

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from dive.steering.adapters import is_credentialed, resave_adapter


class SteeredModel:
    """A model that an adapter steers, until ``detach`` or the end of a ``with`` block.

    Every attribute is the attribute of the model, with these exceptions. ``save_pretrained`` and ``push_to_hub`` write
    the adapter. Methods that return the model (``to``, ``half``, ``eval``, ``train`` ...) return the steered model. The
    adapter follows the model to its devices and into training mode; its parameters and its computation stay in
    float32. ``parameters`` and ``state_dict`` contain the model's parameters only.

    ``isinstance`` treats it as an instance of the model's class. Calls from several threads take turns.

    Attributes:
        model: the backbone.
        steering: the active ``dive.steering.attach.Steering``.
    """

    def __init__(self, model: Any, steering: Any) -> None:
        self.__dict__.update(model=model, steering=steering)

    @property
    def __class__(self) -> type:  # pipelines of transformers ask for it
        return type(self.model)

    def detach(self) -> Any:
        """Remove the adapter and return the model, exactly as it was."""
        self.steering.detach()
        return self.model

    def __enter__(self) -> "SteeredModel":
        self.steering.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        scores: Mapping[str, float] | None = None,
        license: str | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write an adapter folder that ``attach`` can read. It does not contain the backbone.

        Args:
            save_directory: the folder; it is created if it does not exist.
            scores: further scores for the card, name -> value.
            license: identifier of a licence for the card; by default, the terms of backbone and data apply.
            safe_serialization: must be True; accepted for compatibility with transformers.

        Raises:
            ValueError: ``attach`` was given an intervention and not an adapter folder, so a description is missing.
        """
        if not safe_serialization:
            raise ValueError("an adapter is always written as safetensors: omit safe_serialization")
        resave_adapter(save_directory, self.steering.intervention, scores, license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        allow_credentialed: bool = False,
        scores: Mapping[str, float] | None = None,
        license: str | None = None,
        commit_message: str = "Upload adapter",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
    ) -> Any:
        """Publish the adapter on the Hugging Face hub, from which ``attach(model, repo_id)`` loads it.

        Args:
            repo_id: ``user/name``; the repository is created if it does not exist.
            allow_credentialed: publish an adapter that was trained on data for credentialed users only.
            scores: see ``save_pretrained``.
            license: see ``save_pretrained``.
            commit_message: message of the upload's commit.
            private: whether a new repository is private.
            token: access token of the hub; by default, the token of ``hf auth login``.
            revision: branch to upload to.

        Returns:
            The ``CommitInfo`` of ``huggingface_hub``.

        Raises:
            ValueError: the training data are credentialed, or the adapter does not say whether they are.
        """
        config = self.steering.intervention.config
        if config is not None and is_credentialed(config) and not allow_credentialed:
            raise ValueError(
                f"{repo_id}: nothing was published. The adapter in {self.steering.intervention.folder} was trained on "
                "credentialed data, or its config.json does not say that it was not (data.credentialed). If the terms "
                "of use of these data allow it, call push_to_hub(..., allow_credentialed=True)"
            )
        from huggingface_hub import HfApi

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, scores=scores, license=license)
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.steering.turn:
            return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if "model" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self.model, name)
        return self._returning(value) if inspect.ismethod(value) and value.__self__ is self.model else value

    def _returning(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The model's method, which returns the steered model where it would return the model."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if result is not self.model:
                return result
            self.steering.follow()
            self.steering.intervention.train(self.model.training)
            return self

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.model, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.model, name)

    def __dir__(self) -> list[str]:
        return sorted({*dir(self.model), *dir(type(self)), *self.__dict__})

    def __repr__(self) -> str:
        intervention = self.steering.intervention
        return f"SteeredModel({intervention.n_parameters:,} parameters on layers {intervention.sites}, {self.model!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "SteeredModel":
        """A copy of the model, steered by a copy of the adapter; either is detached by itself."""
        from dive.steering.attach import attach

        steering = self.steering
        with steering.lifted() as layers:
            model, intervention = copy.deepcopy((self.model, steering.intervention), memo)
            copied = attach(model, intervention, [memo[id(layer)] for layer in layers])
        intervention.train(steering.intervention.training)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a steered model cannot be pickled: save_pretrained writes the adapter, which attach puts on a backbone"
        )
