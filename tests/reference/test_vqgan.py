"""The VQGAN against the official code's recorded numbers."""

import jax
import numpy as np
import pytest

from rcg.pixel import vqgan
from rcg.torch_weights import export_variables, import_variables

CASES = {
    "vqgan_3level": dict(ch=32, ch_mult=[1, 2, 3], num_res_blocks=1, z_channels=16, codebook_size=64),
    "vqgan_5level": dict(ch=32, ch_mult=[1, 1, 1, 1, 2], num_res_blocks=2, z_channels=24, codebook_size=96),
}


def nhwc(a):
    return np.moveaxis(a, 1, -1)


@pytest.fixture(params=list(CASES))
def case(request, golden):
    architecture = CASES[request.param]
    file = golden(f"rcg/{request.param}")
    arrays = {k.removeprefix("param/"): v for k, v in file.items() if k.startswith("param/")}
    image = nhwc(file["in/image_u8"]).astype(np.float32) / 255
    module = vqgan.build(architecture)
    like = jax.eval_shape(module.init, jax.random.key(0), image)
    variables = import_variables(arrays, vqgan.rules(architecture), like, request.param)
    return module, variables, file, image, arrays, architecture


def test_matches_official_code(case):
    module, variables, file, image, _, _ = case

    def everything(variables, image, indices):
        z = module.apply(variables, image, method="encode")
        tokens, z_q = module.apply(variables, z, method="quantize")
        return {
            "h": z,
            "indices": tokens,
            "z_q": z_q,
            "recon": module.apply(variables, z_q, method="decode"),
            "decoded_indices": module.apply(variables, indices, method="decode_tokens"),
            "emb_loss": vqgan.codebook_loss(z, z_q, legacy=True),
        }

    got = jax.jit(everything)(variables, image, file["in/indices"])
    tokens = file["out/indices"].reshape(len(image), -1)
    assert np.array_equal(got.pop("indices"), tokens)
    assert np.array_equal(module.apply(variables, image, method="tokenize"), tokens)
    for name, value in got.items():
        want = file[f"out/{name}"]
        want = nhwc(want) if want.ndim == 4 else want
        error = np.abs(value - want).max() / np.abs(want).max()
        print(f"{name}: {error:.1e}")
        assert error < 1e-5, name


def test_export_is_the_inverse_of_import(case):
    _, variables, _, _, arrays, architecture = case
    exported = export_variables(variables, vqgan.rules(architecture))
    assert exported.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(exported[name].view(np.uint32), array.view(np.uint32)), name
