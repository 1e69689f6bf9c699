"""ChefFusion's joints, sequences, losses and training step against vectors of the published code."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from chef_fusion import model as chef
from configs.common import training
from launch.runtime.optimizer import learning_rate, make_optimizer
from rcg.layers import linear
from rcg.torch_weights import dense, export_variables, import_variables
from tests.reference.parity import close, under
from tests.reference.tiny_chef import FIRST, load, pixels

PREFIX = jnp.array([81, 36, 21])
CAPTIONS = ("chef_caption", "chef350_caption", "chef_caption_prefix", "chef_caption_concat")


def rules_of_mapper(fields):
    """The mapper's own table, without the prefix of a whole checkpoint."""
    inner = [r for r in chef.rules(fields) if r.ours.startswith("params/mapper/")]
    return [
        r._replace(
            ours=r.ours.replace("params/mapper/", "params/"), theirs=r.theirs.removeprefix(f"{chef.MAPPER}.")
        )
        for r in inner
    ]


def test_mapper_and_its_gradients(golden):
    vectors = golden("chef_fusion/mapper_tiny")
    arrays = under(vectors, "param/")
    module = chef.Mapper(hidden_dim=32)
    table = rules_of_mapper({"num_layers": 4})
    x = vectors["in/hidden"], vectors["in/embs"]
    params = import_variables(arrays, table, jax.eval_shape(module.init, jax.random.key(0), *x), "vector")
    made, seen = jax.jit(functools.partial(module.apply, capture_intermediates=True))(params, *x)
    close("y", made, vectors["out/y"], 1e-5)
    for theirs, name in (("memory", "encoder_norm"), ("decoded", "decoder_norm")):
        close(theirs, seen["intermediates"][name]["__call__"][0], vectors[f"out/{theirs}"], 1e-5)

    def total(params, hidden, embs):
        return (module.apply(params, hidden, embs) * vectors["in/cotangent"]).sum()

    grads, of_hidden, of_embs = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, *x)
    close("grad hidden", of_hidden, vectors["out/grad_hidden"], 1e-4)
    close("grad embs", of_embs, vectors["out/grad_embs"], 1e-4)
    theirs = under(vectors, "out/grad/")
    scale = max(np.abs(v).max() for v in theirs.values())
    ours = export_variables(grads, table)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        limit = 1e-4 * max(np.abs(theirs[name]).max(), 1e-2 * scale)
        assert np.abs(value - theirs[name]).max() <= limit, name
    print(f"{len(ours)} gradients within 1e-4")


def test_mapper_at_full_size(golden):
    vectors = golden("chef_fusion/mapper_full")
    module, table = chef.Mapper(), rules_of_mapper({"num_layers": 4})
    x = vectors["in/hidden"], vectors["in/embs"]
    like = jax.eval_shape(module.init, jax.random.key(0), *x)
    shapes = {
        k: v.shape
        for k, v in export_variables(jax.tree.map(lambda s: np.zeros(s.shape), like), table).items()
    }

    def drawn(name):
        g = np.random.default_rng([int(vectors["in/seed"]), zlib.crc32(name.encode())])
        g = g.standard_normal(shapes[name], dtype=np.float32)
        if "norm" in name and name.endswith("weight"):
            return 1 + np.float32(0.1) * g
        return g if name == "query_embs" else np.float32(0.03 if g.ndim > 1 else 0.02) * g

    params = import_variables({k: drawn(k) for k in shapes}, table, like, "vector")
    close("y", jax.jit(module.apply)(params, *x), vectors["out/y"], 1e-5)


def test_linear_layer_of_gill(golden):
    """Its retrieval head, which checkpoints hold beside the mapper: a map of the first [IMG] state."""
    vectors = golden("chef_fusion/mapper_linear")
    hidden, module = vectors["in/hidden"], linear(vectors["out/y"].shape[-1])
    like = jax.eval_shape(module.init, jax.random.key(0), hidden)
    variables = import_variables(under(vectors, "param/"), dense("params", "model"), like, "vector")
    close("y", module.apply(variables, hidden[:, :1]), vectors["out/y"], 1e-5)


def logits_of(model, frozen, rows, sequence):
    hidden, _ = model.lm.opt.apply(frozen["lm"], sequence.embeddings)
    return model.lm.logits(frozen["lm"], rows, hidden), hidden


@pytest.mark.parametrize(
    "name", ["chef_caption", "chef350_caption", "chef_caption_prefix", "chef_caption_concat"]
)
def test_captioning(golden, name):
    vectors = golden(f"chef_fusion/{name}")
    model, params, frozen = load(golden, "chef350_model" if "350" in name else "chef_model")
    rows = model.rows(params)
    tokens, length = jnp.asarray(vectors["in/labels"]), jnp.asarray(vectors["in/caption_len"])
    visual = model.see(params, frozen, pixels(vectors["in/pixel_values"]))
    close("visual_embs", visual, vectors["out/visual_embs"], 1e-5)
    norm = jnp.linalg.norm(visual, axis=-1).mean()
    close("visual_embs_norm", norm, vectors["out/visual_embs_norm"], 1e-4)
    prefix = PREFIX if "prefix" in name else None
    sequence = chef.caption_sequence(model, frozen, rows, visual, tokens, prefix)
    if "concat" in name:
        k = model.joints.num_visual_tokens
        used = k + length - model.joints.num_image_tokens
        sequence = chef.Sequence(*(chef.concatenate(x, used, k) for x in sequence))
    np.testing.assert_array_equal(sequence.labels, vectors["out/full_labels"])
    logits, _ = logits_of(model, frozen, rows, sequence)
    close("logits", logits, vectors["out/logits"], 1e-5)
    loss, _ = chef.sequence_loss(model, frozen, rows, sequence)
    close("loss", loss, vectors["out/loss"], 1e-5)


@pytest.mark.parametrize(
    "name", ["chef_generation", "chef350_generation", "chef_generation_prefix", "chef_generation_concat"]
)
def test_generation(golden, name):
    vectors = golden(f"chef_fusion/{name}")
    model, params, frozen = load(golden, "chef350_model" if "350" in name else "chef_model")
    rows = model.rows(params)
    tokens, length = jnp.asarray(vectors["in/labels"]), jnp.asarray(vectors["in/caption_len"])
    prefix = PREFIX if "prefix" in name else None
    sequence = chef.generation_sequence(model, frozen, rows, tokens, prefix)
    if "concat" in name:
        sequence = chef.paired_generation(model, sequence, tokens, length)
    np.testing.assert_array_equal(sequence.labels, vectors["out/full_labels"])
    logits, hidden = logits_of(model, frozen, rows, sequence)
    close("logits", logits, vectors["out/logits"], 1e-5)
    loss, _ = chef.sequence_loss(model, frozen, rows, sequence)
    close("loss", loss, vectors["out/loss"], 1e-5)
    m, before = model.joints.num_image_tokens, 0 if prefix is None else len(prefix)
    ends = length
    if "concat" in name:
        hidden, ends = jnp.repeat(hidden, 2, axis=0), chef._ends(length)
    found = chef.image_states(hidden, ends, m, before)
    close("llm_hidden", found, vectors["out/llm_hidden"], 1e-5)
    mapped = model.joints.apply(params, found, method="map")
    close("mapped", mapped, vectors["out/mapped"], 1e-5)
    target = vectors["in/clip_emb"]
    close("l2", jnp.linalg.norm(target - mapped, axis=-1), vectors["out/l2"], 1e-5)
    close("l_g", chef.image_loss(mapped, target), vectors["out/l_g"], 1e-5)
    if prefix is None and "concat" not in name:
        words, states = chef.generation_states(model, frozen, rows, tokens, length)
        close("llm_hidden, words without gradient", states, vectors["out/llm_hidden"], 1e-5)
        assert words.shape[1] == tokens.shape[1] - m


def test_the_papers_losses(golden):
    """l_g of squares, l_p of [IMG0] alone, and a head with rows of its own, from the recorded numbers."""
    vectors = golden("chef_fusion/chef_generation")
    model, params, frozen = load(golden)
    tokens, length = jnp.asarray(vectors["in/labels"]), jnp.asarray(vectors["in/caption_len"])
    batch = {"image": np.zeros((len(tokens), 42, 42, 3), np.uint8), "tokens": tokens, "length": length}
    batch["target"] = jnp.asarray(vectors["in/clip_emb"])
    recipe = chef.Recipe(image_loss="squared", decision_loss="token")
    _, parts = chef.losses(model, params, frozen, batch, recipe)
    close("l_g", parts["l_g"], np.square(vectors["out/l2"]).mean(), 1e-5)
    before = np.asarray(length) - model.joints.num_image_tokens - 1  # the last word, after which [IMG0] comes
    chosen = vectors["out/logits"][np.arange(len(before)), before]
    of_all = np.log(np.exp(chosen - chosen.max(-1, keepdims=True)).sum(-1)) + chosen.max(-1)
    close("l_p", parts["l_p"], (of_all - chosen[:, FIRST]).mean(), 1e-5)

    own = np.random.default_rng(0).standard_normal((8, 48)).astype(np.float32)
    apart = {"params": params["params"] | {"image_head": own}}
    rows = model.joints.clone(tied=False).apply(apart, method="rows")
    np.testing.assert_array_equal(rows.inputs, model.rows(params).head)
    logits, hidden = logits_of(model, frozen, rows, chef.generation_sequence(model, frozen, rows, tokens))
    close("words", logits[..., :FIRST], vectors["out/logits"][..., :FIRST], 1e-5)
    close("[IMG]", logits[..., FIRST:], np.asarray(hidden) @ own.T, 1e-5)


def batches(vectors):
    for i in (1, 2):
        yield {
            "image": pixels(vectors[f"in/pixel_values_{i}"]),
            "tokens": jnp.asarray(vectors[f"in/labels_{i}"]),
            "length": jnp.asarray(vectors[f"in/caption_len_{i}"]),
            "target": jnp.asarray(vectors[f"in/clip_emb_{i}"]),
        }


def reference_losses(model, params, frozen, batch, recipe):
    """The losses with one whole pass, all of it differentiated: what `losses` must equal in less work."""
    rows = model.rows(params)
    visual = model.see(params, frozen, batch["image"])
    sequence = chef.caption_sequence(model, frozen, rows, visual, batch["tokens"])
    l_r, _ = chef.sequence_loss(model, frozen, rows, sequence)
    sequence = chef.generation_sequence(model, frozen, rows, batch["tokens"])
    l_p, hidden = chef.sequence_loss(model, frozen, rows, sequence)
    found = chef.image_states(hidden, batch["length"], model.joints.num_image_tokens)
    l_g = chef.image_loss(model.joints.apply(params, found, method="map"), batch["target"])
    return recipe.caption_scale * l_r + recipe.decision_scale * l_p + recipe.image_scale * l_g


def test_the_words_need_no_gradient(golden):
    """Values and gradients, the tied head's term included, of the short way and the whole one."""
    vectors = golden("chef_fusion/chef_train_step")
    model, params, frozen = load(golden)
    recipe = chef.Recipe()
    dim = model.joints.out_dim

    def the_short_way(params, batch):
        return chef.losses(model, params, frozen, batch, recipe)[0]

    def the_whole_way(params, batch):
        return reference_losses(model, params, frozen, batch, recipe)

    ways = [jax.jit(jax.value_and_grad(way)) for way in (the_short_way, the_whole_way)]
    for batch in batches(vectors):
        assert batch["target"].shape[-1] == dim
        short, whole = (way(params, batch) for way in ways)
        close("loss", short[0], whole[0], 1e-6)
        pairs = zip(jax.tree_util.tree_leaves_with_path(short[1]), jax.tree.leaves(whole[1]), strict=True)
        for (path, ours), theirs in pairs:
            scale = max(float(jnp.abs(theirs).max()), 1e-4)
            error = float(jnp.abs(ours - theirs).max()) / scale
            assert error < 2e-5, f"{jax.tree_util.keystr(path)}: {error:.1e}"


def test_the_gradient_of_every_embedding(golden):
    """Of the whole table, frozen rows too, before any is masked or clipped."""
    vectors = golden("chef_fusion/chef_train_step")
    model, params, frozen = load(golden)

    def loss(params, table):
        lm = {"params": frozen["lm"]["params"] | {"embed_tokens": table}}
        batch = next(batches(vectors))
        return reference_losses(model, params, {**frozen, "lm": lm}, batch, chef.Recipe())

    table = jnp.asarray(frozen["lm"]["params"]["embed_tokens"])
    of_params, of_table = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, table)
    ours = np.concatenate([of_table[:FIRST], of_params["params"]["image_embeddings"]])
    close("gradient", ours, vectors["out/grad_full_embeddings"], 1e-4)


def test_two_training_steps(golden):
    vectors = golden("chef_fusion/chef_train_step")
    model, params, frozen = load(golden)
    config = training()
    config.optimizer.update(
        learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=0.01, decay="all", clip_norm=1.0
    )
    optimizer = make_optimizer(config, params)
    state = optimizer.init(params)
    fields = {"num_layers": 4}

    @jax.jit
    def step(params, state, batch):
        (_, parts), grads = jax.value_and_grad(
            lambda p: chef.losses(model, p, frozen, batch, chef.Recipe()), has_aux=True
        )(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return chef.rescale_rows(params, chef.mean_row_norm(model, frozen)), state, grads, parts

    for i, batch in enumerate(batches(vectors), 1):
        params, state, grads, parts = step(params, state, batch)
        close(f"l_r {i}", parts["l_r"], vectors[f"out/ce_captioning_{i}"], 1e-5)
        close(f"l_p {i}", parts["l_p"], vectors[f"out/ce_generation_{i}"], 1e-5)
        close(f"l_g {i}", parts["l_g"], vectors[f"out/l_g_{i}"], 1e-5)
        close(f"loss {i}", parts["loss"], vectors[f"out/loss_{i}"], 1e-5)
        close(f"grad_norm {i}", optax.tree.norm(grads), vectors[f"out/grad_norm_{i}"], 1e-4)
        # theirs decays the frozen rows too, by 1e-5 a step
        close(f"frozen_norm {i}", chef.mean_row_norm(model, frozen), vectors[f"out/frozen_norm_{i}"], 1e-4)
        if i == 1:
            close_all("gradient", grads, fields, under(vectors, "out/grad/"), vectors["out/grad_norm_1"])
        close_all(f"after step {i}", params, fields, under(vectors, f"out/step{i}/"))


def close_all(what, ours, fields, theirs, clipped_norm=None):
    """Each array of ours against theirs, of the same name; the [IMG] rows alone of the embeddings."""
    ours = export_variables(ours, chef.rules(fields))
    scale = min(1.0, 1.0 / float(clipped_norm)) if clipped_norm is not None else 1.0
    largest = max(np.abs(v).max() for v in theirs.values())
    seen = 0
    for name, value in ours.items():
        if name not in theirs:
            assert not clipped_norm, name  # of the parameters after a step some are left out
            continue
        expected = theirs[name]
        expected = expected[FIRST:] if name == "model.input_embeddings.weight" else expected
        if name.endswith("in_proj_bias") and not clipped_norm:
            # softmax does not see a bias of the keys: its gradient is rounding, which Adam makes a step of
            value, expected = (np.delete(b.reshape(3, -1), 1, axis=0) for b in (value, expected))
        limit = 1e-4 * max(np.abs(expected).max(), (1e-2 * largest) if clipped_norm is not None else 0)
        error = np.abs(scale * value - expected).max()
        assert error <= limit, f"{what}: {name} {error:.1e} > {limit:.1e}"
        seen += 1
    print(f"{what}: {seen} arrays within 1e-4")


@pytest.mark.parametrize("case", ["short", "chef", "gill"])
def test_learning_rates(golden, case):
    vectors = golden("chef_fusion/lr_schedule")
    warmup, epochs, per_epoch, _ = (int(n) for n in vectors[f"in/{case}"])
    settings = ConfigDict(training().optimizer)
    settings.update(learning_rate=1e-3, schedule="step", warmup_steps=warmup, epoch_steps=per_epoch)
    settings.decay_steps = epochs * per_epoch
    rates = learning_rate(np.arange(len(vectors[f"out/{case}"])), settings, 0)
    np.testing.assert_allclose(rates, vectors[f"out/{case}"], rtol=1e-5, atol=1e-12)
