"""What several tests of the data room share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.data.pipeline_golden import without_opencv


@pytest.fixture(params=["pillow", "opencv"], scope="module")
def each_decoder(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of the module runs with OpenCV and without it."""
    if request.param == "opencv":
        pytest.importorskip("cv2")
        yield
    else:
        with without_opencv():
            yield
