"""FID-Inception, FID and Inception Score against torch-fidelity, on random weights."""

import sys
import types

import jax
import numpy as np
import pytest

from rcg import inception, metrics
from rcg.torch_weights import import_variables


@pytest.fixture(scope="module")
def fidelity():
    """torch_fidelity without torchvision, which only its data sets need."""
    pytest.importorskip("torch")
    stubs = {}
    if "torchvision" not in sys.modules:
        stubs["torchvision"] = types.ModuleType("torchvision")
        for name in ("datasets", "transforms", "models"):
            inner = types.ModuleType(f"torchvision.{name}")
            inner.__getattr__ = lambda name: type(name, (), {})
            setattr(stubs["torchvision"], name, inner)
            stubs[f"torchvision.{name}"] = inner
        sys.modules.update(stubs)
    yield pytest.importorskip("torch_fidelity")
    for name in stubs:  # other libraries look whether there is a real one
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def both(fidelity, tmp_path_factory):
    """Their network with random weights and statistics, our variables of the same file."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    class Extractor(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    network = Extractor("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    arrays = {k: v.numpy() for k, v in network.state_dict().items() if not k.endswith(inception.COUNTER)}
    module = inception.build({})
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), image)
    return network, module, import_variables(arrays, inception.rules({}), like, "random")


@pytest.fixture(scope="module")
def features(both):
    """Of two sets of 24 images: ((theirs, ours), (theirs, ours)), each (2048-d, logits)."""
    import torch

    network, module, variables = both
    apply = jax.jit(module.apply)
    rng = np.random.default_rng(0)
    sets = []
    for size, blur in ((64, 4), (75, 1)):
        coarse = rng.integers(0, 256, (24, 1 + size // blur, 1 + size // blur, 3))
        images = coarse.repeat(blur, 1).repeat(blur, 2)[:, :size, :size].astype(np.uint8)
        with torch.no_grad():
            theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        sets.append((tuple(t.numpy() for t in theirs), tuple(map(np.asarray, apply(variables, images)))))
    return sets


def test_features_and_logits(features):
    for theirs, ours in features:
        for name, a, b in zip(("features", "logits"), theirs, ours, strict=True):
            error = np.abs(a - b).max() / np.abs(a).max()
            print(f"{name}: {error:.1e}")
            assert error < 1e-4


def test_frechet_distance(fidelity, features, monkeypatch):
    import torch
    from scipy import linalg
    from torch_fidelity import metric_fid

    root = linalg.sqrtm  # theirs calls it in a way that SciPy 1.18 no longer takes
    monkeypatch.setattr(linalg, "sqrtm", lambda matrix, disp: (root(matrix), None))
    (theirs1, ours1), (theirs2, ours2) = features
    of = [metric_fid.fid_features_to_statistics(torch.from_numpy(t[0][:, :16])) for t in (theirs1, theirs2)]
    want = metric_fid.fid_statistics_to_metric(*of, verbose=False)["frechet_inception_distance"]
    got = metrics.frechet_distance(*metrics.gaussian(ours1[0][:, :16]), *metrics.gaussian(ours2[0][:, :16]))
    print(f"Frechet distance: theirs {want:.6f}, ours {got:.6f}")
    assert abs(got - want) < 1e-3 * want


def test_inception_score(fidelity, features):
    import torch
    from torch_fidelity import metric_isc

    theirs, ours = features[0]
    scale = np.float32(3 / theirs[1].std(0).mean())  # random weights tell images apart too little
    want = metric_isc.isc_features_to_metric(torch.from_numpy(theirs[1] * scale), splits=3)
    got = metrics.inception_score(ours[1] * scale, splits=3)
    assert got[0] > 1.5
    print(f"Inception Score: theirs {want}, ours {got}")
    assert abs(got[0] - want["inception_score_mean"]) < 1e-3 * got[0]
    assert abs(got[1] - want["inception_score_std"]) < 1e-3 * got[0]


def test_streamed_score_is_that_of_all_logits(features):
    """Splits and all, in batches of 5."""
    from rcg import statistics

    logits = features[0][1][1] * 2
    splits = statistics.split_of(len(logits), 3)
    sums = statistics.ClassMoments.empty(3, logits.shape[1])
    for i in range(0, len(logits), 5):
        sums.add(logits[i : i + 5], splits[i : i + 5])
    np.testing.assert_allclose(sums.score(), metrics.inception_score(logits, splits=3), rtol=1e-9)


@pytest.mark.parametrize("size", [32, 256, 299, 500])
def test_resize_is_tensorflows(fidelity, size):
    import torch
    from torch_fidelity import interpolate_compat_tensorflow as tensorflow

    image = np.random.default_rng(1).integers(0, 256, (1, size, size + 7, 3)).astype(np.uint8)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2)).float()
    want = tensorflow.interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False)
    got = np.asarray(inception.resize(image, 299)).transpose(0, 3, 1, 2)
    assert np.abs(got - want.numpy()).max() < 1e-3
