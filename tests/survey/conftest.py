import pytest

from bharateo.display import Display


@pytest.fixture
def quiet():
    return Display(quiet=True)
