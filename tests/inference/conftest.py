"""What tests of inference may ask for."""

import network_bundles
import pytest


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Returns a function that gives a small bundle of a network by its name, exported once."""
    folder, bundles = tmp_path_factory.mktemp("networks"), {}

    def make(name):
        if name not in bundles:
            bundles[name] = network_bundles.exported(name, folder)
        return bundles[name]

    return make
