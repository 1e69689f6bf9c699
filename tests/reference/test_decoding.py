"""Decoding against the published loop's recorded traces and transformers' generate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chef_fusion import decoding
from chef_fusion.backbones import opt, published
from chef_fusion.decoding import ImageDecision, LanguageModel, sampling
from rcg.torch_weights import import_variables
from tests.reference.parity import close
from tests.reference.tiny_chef import load, pixels


def chef(golden, name="chef_model"):
    """The tiny recorded ChefFusion's language model: (lm, variables, rows)."""
    model, params, frozen = load(golden, name)
    return model.lm, frozen["lm"], model.rows(params)


def begin(lm, variables, rows, embeddings, room=24):
    B, T, _ = embeddings.shape
    width = 3  # padding on the left must change nothing
    padded = jnp.pad(jnp.asarray(embeddings), ((0, 0), (width, 0), (0, 0)), constant_values=7.0)
    mask = jnp.arange(T + width)[None].repeat(B, 0) >= width
    return decoding.start(lm, variables, rows, padded, mask, jnp.zeros((B, 0), bool), room=room)


CASES = {
    "chef_gen_greedy": {"max_words": 10},
    "chef350_gen_greedy": {"max_words": 10},
    "chef_gen_forced": {"max_words": 6, "min_words": 4, "scale": 1e5},
    "chef_gen_forced0": {"max_words": 3, "scale": 1e5},
    "chef_gen_batch2": {"max_words": 7, "min_words": 2, "scale": 1e5, "follow": False},
    "chef_gen_gill_scales": {"max_words": 5, "scale": 1.7 * 1.6},
}


@pytest.mark.parametrize("name", CASES)
def test_recorded_generation(golden, name):
    settings = dict(CASES[name])
    words = settings.pop("max_words")
    vectors = golden(f"chef_fusion/{name}")
    lm, variables, rows = chef(golden, "chef350_model" if "350" in name else "chef_model")
    ids, logits = vectors["out/ids"], vectors["out/logits"]
    batch = len(ids)
    images = ImageDecision(max_images=99, **settings)
    embeddings = vectors["in/embeddings"][:batch]
    state, stop = begin(lm, variables, rows, embeddings), jnp.full((batch, 1), -1)
    run = (jax.random.key(0), 24, jnp.full(batch, words), stop, sampling(), images)

    seen, step = begin(lm, variables, rows, embeddings), 0
    while step < words:
        free = not (seen.run > 0).any()
        if free:
            ours, theirs = np.asarray(decoding.decide(lm, seen, images)), logits[step]
            assert np.array_equal(np.isinf(ours), np.isinf(theirs))
            finite = ~np.isinf(theirs)
            close(f"logits {step}", ours[finite], theirs[finite], 1e-4)
            step += 1
        seen = decoding.feed(
            lm, variables, rows, seen, decoding.decide(lm, seen, images).argmax(-1), images, stop, 1
        )

    state = decoding.advance(lm, variables, rows, state, *run)
    n = ids.shape[1]
    assert np.array_equal(state.length, [n] * batch)
    np.testing.assert_array_equal(state.tokens[:, :n], ids)
    # the reference has no states of what its last step appended
    known = vectors["out/final_hidden"][:, embeddings.shape[1] :]
    close("hidden", state.hidden[:, : known.shape[1]], known, 1e-4)


def test_recorded_nucleus(golden):
    vectors = golden("chef_fusion/chef_gen_top_p")
    lm, variables, rows = chef(golden)
    settings, images = sampling(temperature=0.7, top_p=0.9), ImageDecision(max_images=99)
    state = begin(lm, variables, rows, vectors["in/embeddings"][:1])
    for step, pick in enumerate(vectors["in/picks"]):
        weights = jax.nn.softmax(decoding.distribution(decoding.decide(lm, state, images), settings))[0]
        theirs = vectors["out/probs"][step]
        assert np.array_equal(np.asarray(weights) > 0, theirs > 0)
        close(f"probs {step}", weights, theirs / theirs.sum(), 1e-4)
        assert weights[pick] > 0
        chosen = jnp.asarray(vectors["out/ids"][:, step])
        assert chosen == pick
        state = decoding.feed(lm, variables, rows, state, chosen, images, jnp.full((1, 1), -1), 1)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_generate_is_that_of_transformers(penalty):
    """Identical greedy tokens of a left-padded batch, with a stop token."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(1)
    fields = {
        "vocab_size": 120,
        "hidden_size": 48,
        "ffn_dim": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    fields |= {"word_embed_proj_dim": 48, "max_position_embeddings": 64, "do_layer_norm_before": True}
    theirs = transformers.OPTForCausalLM(transformers.OPTConfig(**fields, init_std=0.3)).eval()
    arrays = {k: v.numpy() for k, v in theirs.state_dict().items()}
    arrays = published._arrays(opt, arrays, "test")
    variables = import_variables(arrays, opt.rules(fields), opt.abstract_variables(fields), "test")
    lm = LanguageModel(opt.build(fields))
    ids = np.random.default_rng(0).integers(4, 120, (3, 9))
    mask = np.arange(9) >= np.array([[0], [4], [6]])
    ids[~mask] = 1
    options = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 1, "repetition_penalty": penalty}
    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(int))}
        free = theirs.generate(**given, **options, eos_token_id=None)[:, 9:].numpy()
        stop = int(free[1][np.argmax(free[1] != free[1][0])])
        expected = theirs.generate(**given, **options, eos_token_id=stop)[:, 9:].numpy()
    seen = np.zeros((3, 120 if penalty != 1 else 0), bool)
    if penalty != 1:
        seen[np.arange(3)[:, None], ids] = True  # transformers counts padding too
    embeddings = lm.embed(variables, None, jnp.asarray(ids))
    state = decoding.start(lm, variables, None, embeddings, jnp.asarray(mask), jnp.asarray(seen), room=32)
    stops, settings = jnp.full((3, 1), stop), sampling(repetition_penalty=penalty)
    words, key = jnp.full(3, 20), jax.random.key(0)
    for limit in (1, 5, 20):  # in pieces
        state = decoding.advance(
            lm, variables, None, state, key, limit, words, stops, settings, ImageDecision(), pad_id=1
        )
    n = expected.shape[1]
    np.testing.assert_array_equal(state.tokens[:, :n], expected)
    assert state.done[1] and state.length[1] < n == int(state.length.max())


def test_truncation_is_that_of_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    logits = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32) * 2
    for k, p in ((5, 1.0), (0, 0.7), (12, 0.5), (1, 1.0), (0, 0.01)):
        theirs = torch.tensor(logits) / 0.8
        if k:
            theirs = transformers.TopKLogitsWarper(k)(None, theirs)
        if p < 1:
            theirs = transformers.TopPLogitsWarper(p)(None, theirs)
        ours = decoding.distribution(jnp.asarray(logits), sampling(0.8, k, p))
        assert np.array_equal(np.isinf(ours), np.isinf(theirs.numpy())), (k, p)


def test_draws_follow_the_distribution_and_their_row():
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.7, 1e-9]])).repeat(2000, 0)
    keys = jax.random.split(jax.random.key(0), 2000)
    seen = jnp.zeros((2000, 0), bool)
    picks = np.asarray(decoding.choose(logits, seen, keys, sampling(1.0)))
    share = np.bincount(picks, minlength=4) / 2000
    assert np.abs(share - [0.1, 0.2, 0.7, 0]).max() < 0.04
    alone = decoding.choose(logits[:7], seen[:7], keys[:7], sampling(1.0))
    assert np.array_equal(alone, picks[:7])


def test_interleaved_prompt_to_picture_states(golden):
    """Text, photo, text, then a word and a forced picture, which ends it: what Stable Diffusion is handed."""
    vectors = golden("chef_fusion/chef_interleaved")
    model, params, frozen = load(golden)
    rows, lm = model.rows(params), model.lm
    visual = model.see(params, frozen, pixels(vectors["in/pixel_values"]))[0]
    texts = [lm.embed(frozen["lm"], rows, jnp.asarray(vectors[f"in/text{i}_ids"])) for i in (0, 1)]
    embeddings = jnp.concatenate([texts[0], visual, texts[1]])[None]
    images = ImageDecision(scale=1e5, min_words=1, ends=True)
    state = begin(lm, frozen["lm"], rows, embeddings, room=40)
    run = (jax.random.key(0), 40, jnp.array([4]), jnp.full((1, 1), -1), sampling(), images)
    state = decoding.advance(lm, frozen["lm"], rows, state, *run)
    first = int(np.argmax(np.asarray(state.tokens[0]) == lm.image_first))
    states = state.hidden[:, first : first + model.joints.num_image_tokens]
    mapped = model.joints.apply(params, states, method="map")
    close("gen_emb", mapped, vectors["out/gen_emb"], 1e-4)
    ids = np.asarray(state.tokens[0, : int(state.length[0])])
    texts = np.split(ids, [first, first + model.joints.num_image_tokens])[::2]
    outputs = sum(len(text) > 0 for text in texts) + np.count_nonzero(ids == lm.image_first)
    assert outputs == vectors["out/n_outputs"]


def test_a_repetition_is_less_likely_on_either_side_of_nought():
    """A penalty multiplies negative logits and divides positive ones, as transformers'."""
    settings, keys = sampling(repetition_penalty=1.3), jax.random.split(jax.random.key(0), 2)
    logits, seen = jnp.array([[-1.0, -1.1], [1.1, 1.0]]), jnp.array([[True, False], [True, False]])
    assert list(decoding.choose(logits, seen, keys, settings)) == [1, 1]
    assert list(decoding.choose(logits, ~seen, keys, settings)) == [0, 0]
