"""The kitchen as a source of records (`rcg.data.Source`)."""

import dataclasses
import functools
from typing import Any

import numpy as np

from chef_fusion.kitchen.menu import SPLITS, Dish, bases
from chef_fusion.kitchen.menu import dish as dish_of
from chef_fusion.kitchen.pictures import open_pictures
from chef_fusion.kitchen.scenes import draw
from chef_fusion.kitchen.words import recipe
from rcg.errors import UserError

KEPT_SIZE = 64


@functools.lru_cache(maxsize=2**15)
def _kept(dish: Dish, size: int) -> np.ndarray:
    image = draw(dish, size)
    image.flags.writeable = False
    return image


def picture(dish: Dish, size: int) -> np.ndarray:
    """uint8 [size, size, 3]. Small ones are kept, 400 MB at most: the stages of a pipeline see the same."""
    return _kept(dish, size) if size <= KEPT_SIZE else draw(dish, size)


@dataclasses.dataclass(frozen=True)
class KitchenSource:
    """`num` dishes of one split and menu; `label` is the base's place on the menu.

    Attributes:
      pictures: folder of what `kitchen.pictures` has drawn; "": they are drawn when asked for.

    Raises:
      UserError: a split or a menu that does not exist, or less than one dish; pictures of others.
    """

    num: int
    split: str = "train"
    image_size: int = 64
    seed: int = 0
    menu: str = "long"
    pictures: str = ""

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(f'the kitchen has no split "{self.split}"; there are: {", ".join(SPLITS)}')
        bases(self.menu)
        if self.num < 1:
            raise UserError(f"the kitchen needs at least 1 dish, not {self.num}")
        if self.pictures:
            self._kept()

    def _kept(self) -> np.ndarray:
        return open_pictures(self.pictures, self.num, self.seed, self.split, self.menu, self.image_size)

    def __len__(self) -> int:
        return self.num

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(bases(self.menu))

    def dish(self, i: int) -> Dish:
        if not 0 <= i < self.num:
            raise IndexError(f"dish {i} of {self.num}")
        return dish_of(self.seed, int(i), self.split, self.menu)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """{"image": uint8 [image_size, image_size, 3], "label": int}."""
        made = self.dish(i)
        image = self._kept()[i] if self.pictures else picture(made, self.image_size)
        return {"image": image, "label": self.label_names.index(made.base)}

    def recipe(self, i: int) -> dict[str, Any]:
        """The recipe of dish `i`, in Recipe1M's record form."""
        return recipe(self.dish(i))

    def name(self, i: int) -> str:
        return f"kitchen/{self.menu} menu/{self.split}/seed {self.seed}/dish {i}"


def open_source(data: Any, split: str) -> KitchenSource:
    """The kitchen as `config.data` asks for it: `num_records` dishes of `menu` to train on, an eighth of
    that (at least 64) for each other split, drawn at `image_size`."""
    split = {"train": data.train_split, "eval": data.eval_split}.get(split, split)
    num = data.num_records if split == "train" else max(64, data.num_records // 8)
    pictures = data.get("pictures", "")
    return KitchenSource(num, split, data.image_size, menu=data.menu or "long", pictures=pictures)
