import numpy as np
import pytest
from PIL import Image

from launch.runtime.images import BACKGROUND, grid, labelled_rows, save_png, to_uint8
from rcg.errors import UserError


def test_floats_are_truncated_and_clipped():
    values = np.array([0.0, 0.5, 0.999, 1.0, -3.0, 7.0, np.nan, np.inf, -np.inf])
    assert to_uint8(values).tolist() == [0, 127, 254, 255, 0, 255, 0, 255, 0]


def test_uint8_survives_a_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    assert (to_uint8(levels) == levels).all()
    assert (to_uint8(levels.astype(np.float32) / 255) == levels).all()


def test_grid_places_each_image_on_a_light_ground():
    images = np.stack([np.full((3, 4, 3), 10 * i, np.uint8) for i in range(5)])
    sheet = grid(images, columns=2, pad=1)
    assert sheet.shape == (3 * 4 + 1, 2 * 5 + 1, 3)
    for i in range(5):
        top, left = 1 + i // 2 * 4, 1 + i % 2 * 5
        assert (sheet[top : top + 3, left : left + 4] == 10 * i).all()
    assert (sheet[9:, 5:] == BACKGROUND).all()  # the empty last place
    assert (sheet[0] == BACKGROUND).all()


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (4, 4, 3), (2, 4, 4, 1)])
def test_grid_refuses_what_is_no_row_of_images(shape):
    with pytest.raises(ValueError, match="N, H, W, 3"):
        grid(np.zeros(shape))


def test_labelled_rows_keeps_rows_apart_and_writes_names():
    red, blue = np.zeros((2, 4, 64, 64, 3), np.float32)
    red[..., 0], blue[..., 2] = 1, 1
    sheet = labelled_rows({"red": red, "a longer name": blue[:2]})
    assert (sheet[20, -20] == [255, 0, 0]).all()
    assert (sheet[66 + 20, -20] == BACKGROUND).all()  # the second row has two images only
    gutter = sheet[:60, :20]
    assert gutter.min() < 100, "no text beside the first row"


def test_small_images_are_enlarged_without_blur():
    small = np.random.default_rng(0).random((1, 32, 32, 3))
    sheet = labelled_rows({"x": small}, scale_to=64)
    assert (sheet[2:66:2, -66:-2:2] == to_uint8(small[0])).all()


def test_save_png_makes_the_folder_and_leaves_nothing_else(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
    save_png(str(tmp_path / "a" / "b.png"), image)
    assert (np.asarray(Image.open(tmp_path / "a" / "b.png")) == image).all()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]


def test_save_png_says_why_it_cannot(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write .*file/x.png"):
        save_png(str(tmp_path / "file" / "x.png"), np.zeros((2, 2, 3)))
