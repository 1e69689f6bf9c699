"""OPT against recorded vectors and against transformers in PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chef_fusion.backbones import opt, published
from chef_fusion.backbones.attention import flat
from rcg.torch_weights import import_variables
from tests.reference.parity import close, under

TINY = {
    "vocab_size": 96,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 48,
    "max_position_embeddings": 64,
    "do_layer_norm_before": True,
}
KINDS = {"pre": TINY, "post": TINY | {"word_embed_proj_dim": 28, "do_layer_norm_before": False}}


def load(vectors, kind):
    arrays = under(vectors, "param/")
    first = next(v for k, v in arrays.items() if k.endswith("layers.0.fc1.weight"))
    rows = next(v for k, v in arrays.items() if k.endswith("embed_positions.weight"))
    fields = KINDS[kind] | {"ffn_dim": len(first), "max_position_embeddings": len(rows) - 2}
    arrays = published._arrays(opt, arrays, "vector")
    return opt.build(fields), import_variables(
        arrays, opt.rules(fields), opt.abstract_variables(fields), "vector"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_forward(golden, kind):
    vectors = golden(f"chef_fusion/opt_{kind}")
    module, variables = load(vectors, kind)
    run = jax.jit(lambda v, ids, mask: module.apply(v, ids, mask, method="from_ids"))
    ids = jnp.asarray(vectors["in/input_ids"])
    logits, hidden = run(variables, ids, None)
    close("logits", logits, vectors["out/logits"], 1e-5)
    close("hidden", hidden, vectors["out/hidden_states_3"], 1e-5)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], -1)[..., 0]
    counted = vectors["in/labels"][:, 1:] >= 0
    close("loss", (losses * counted).sum() / counted.sum(), vectors["out/loss"], 1e-5)
    for side in ("left", "right"):
        mask = vectors[f"in/mask_{side}"] > 0
        logits, _ = run(variables, ids, jnp.asarray(mask))
        close(f"padded {side}", logits[mask], vectors[f"out/logits_mask_{side}"][mask], 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_keys_give_the_same(golden, kind):
    """A prefix, then the rest on its keys and values: appended, or written into a cache."""
    vectors = golden(f"chef_fusion/opt_{kind}")
    module, variables = load(vectors, kind)
    ids = jnp.asarray(vectors["in/input_ids"])
    whole, _ = module.apply(variables, module.apply(variables, ids, method="embed"))
    parts = [module.apply(variables, part, method="embed") for part in (ids[:, :8], ids[:, 8:])]
    _, past = module.apply(variables, parts[0])
    T, rest = ids.shape[1], ids.shape[1] - 8
    positions = jnp.arange(8, T)[None]
    seen = opt.causal_mask(rest, T)
    appended, _ = module.apply(variables, parts[1], seen, positions=positions, past=past)
    close("appended", appended, whole[:, 8:], 1e-5)
    room = [tuple(jnp.pad(flat(x), ((0, 0), (0, 20 - 8), (0, 0))) for x in kv) for kv in past]
    seen = jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (0, 20 - T)))
    written, _ = module.apply(variables, parts[1], seen, positions=positions, past=room, index=8)
    close("written", written, whole[:, 8:], 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_to_the_inputs(golden, kind):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    vectors = golden(f"chef_fusion/opt_{kind}")
    module, variables = load(vectors, kind)
    fields = {f: getattr(module, f) for f in opt.FIELDS}
    theirs = transformers.OPTForCausalLM(transformers.OPTConfig(**fields)).eval()
    state = {k: torch.tensor(v) for k, v in under(vectors, "param/").items()}
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and missing.missing_keys in ([], ["lm_head.weight"])
    theirs.tie_weights()
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, 9, module.word_embed_proj_dim)).astype(np.float32)
    cotangent = rng.standard_normal((2, 9, module.vocab_size)).astype(np.float32)
    x = torch.tensor(inputs, requires_grad=True)
    (theirs(inputs_embeds=x).logits * torch.tensor(cotangent)).sum().backward()

    for options in ({}, {"scan_layers": True, "remat": "full"}, {"attention": "einsum"}):
        run = opt.build(fields, **options)

        def total(x, run=run):
            hidden, _ = run.apply(variables, x)
            return (run.apply(variables, hidden, method="logits") * cotangent).sum()

        close(f"gradient {options}", jax.jit(jax.grad(total))(inputs), x.grad.numpy(), 1e-4)


def test_sharded_pickles_under_short_names(shared, golden):
    """float16, in two .bin shards, names beginning at decoder."""
    pytest.importorskip("torch")
    folder = str(shared / "golden/chef_fusion/hf_opt_sharded")
    made = published.read("opt", folder)
    vectors = golden("chef_fusion/opt_pre")
    module = opt.build(made.architecture)
    logits, _ = module.apply(made.variables, jnp.asarray(vectors["in/input_ids"]), method="from_ids")
    assert jax.tree.leaves(made.variables)[0].dtype == np.float16
    close("logits", logits, vectors["out/logits"], 1e-5)


@pytest.mark.parametrize(
    "name, variant", [("125m", "125m"), ("350m", "350m"), ("1b3", "1.3b"), ("2b7", "2.7b"), ("6b7", "6.7b")]
)
def test_sizes_are_the_published_ones(shared, name, variant):
    config = json.loads((shared / f"reference/configs/opt_{name}.json").read_text())
    assert opt.build(opt.resolve({"variant": variant})) == opt.build(opt.architecture_of(config))
