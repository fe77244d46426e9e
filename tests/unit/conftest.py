"""Fixtures that several unit tests share."""

import pytest


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory):
    """``tiny_settings(family)``: the config slice of an untrained tiny backbone, written once a session."""
    from tests.unit.tiny_models import settings, write_tiny

    folders = {}

    def make(family: str, **changes) -> dict:
        if family not in folders:
            folders[family] = write_tiny(tmp_path_factory.mktemp("models") / family, family)
        return {**settings(folders[family]), **changes}

    return make
