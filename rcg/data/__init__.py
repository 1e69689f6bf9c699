"""Images as training input: where they come from, how they are decoded, in which order they come.

source = open_source(config.data, config.data.train_split)
for batch in image_batches(source, config.data, split="train", batch_size=256, seed=0): ...
"""

from rcg.data.bad_records import BadRecords
from rcg.data.decode import DecodeError, center_crop, decode, resize_short_side
from rcg.data.pipeline import Share, cores, eval_arrays, image_batches, image_dataset
from rcg.data.sources import ArraySource, ImageFolder, ParquetImages, Source, TfdsImages, open_source

__all__ = [
    "ArraySource",
    "BadRecords",
    "DecodeError",
    "ImageFolder",
    "ParquetImages",
    "Share",
    "Source",
    "TfdsImages",
    "center_crop",
    "cores",
    "decode",
    "eval_arrays",
    "image_batches",
    "image_dataset",
    "open_source",
    "resize_short_side",
]
