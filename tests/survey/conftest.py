import pytest

from bharateo.display import Display
from survey.class_maps import made_up_world


@pytest.fixture
def quiet():
    return Display(quiet=True)


@pytest.fixture(scope="module")
def world():
    return made_up_world()
