"""The kitchen as a source of records (`rcg.data.Source`)."""

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from chef_fusion.kitchen import menu
from chef_fusion.kitchen.scenes import draw
from chef_fusion.kitchen.words import recipe
from rcg.errors import UserError

KEPT_SIZE = 64


@functools.lru_cache(maxsize=2**15)
def _kept(dish: menu.Dish, size: int) -> np.ndarray:
    image = draw(dish, size)
    image.flags.writeable = False
    return image


def picture(dish: menu.Dish, size: int) -> np.ndarray:
    """uint8 [size, size, 3]. Small ones are kept, 400 MB at most: the stages of a pipeline see the same."""
    return _kept(dish, size) if size <= KEPT_SIZE else draw(dish, size)


@dataclasses.dataclass(frozen=True)
class KitchenSource:
    """`num` dishes of one split, drawn when asked for; `label` is the base's index.

    Raises:
      UserError: a split that does not exist, or less than one dish.
    """

    num: int
    split: str = "train"
    image_size: int = 64
    seed: int = 0
    label_names: ClassVar[tuple[str, ...]] = menu.BASES

    def __post_init__(self):
        if self.split not in menu.SPLITS:
            raise UserError(f'the kitchen has no split "{self.split}"; there are: {", ".join(menu.SPLITS)}')
        if self.num < 1:
            raise UserError(f"the kitchen needs at least 1 dish, not {self.num}")

    def __len__(self) -> int:
        return self.num

    def dish(self, i: int) -> menu.Dish:
        if not 0 <= i < self.num:
            raise IndexError(f"dish {i} of {self.num}")
        return menu.dish(self.seed, int(i), self.split)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """{"image": uint8 [image_size, image_size, 3], "label": int}."""
        made = self.dish(i)
        return {"image": picture(made, self.image_size), "label": menu.BASES.index(made.base)}

    def recipe(self, i: int) -> dict[str, Any]:
        """The recipe of dish `i`, in Recipe1M's record form."""
        return recipe(self.dish(i))

    def name(self, i: int) -> str:
        return f"kitchen/{self.split}/seed {self.seed}/dish {i}"


def open_source(data: Any, split: str) -> KitchenSource:
    """The kitchen as `config.data` asks for it: `num_records` dishes to train on, an eighth of that (at least
    64) for each other split, drawn at `image_size`."""
    split = {"train": data.train_split, "eval": data.eval_split}.get(split, split)
    num = data.num_records if split == "train" else max(64, data.num_records // 8)
    return KitchenSource(num, split, data.image_size)
