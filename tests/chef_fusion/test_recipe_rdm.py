"""What an RDM for recipes is told."""

import numpy as np
import pytest

from chef_fusion import recipe_rdm
from rcg.errors import UserError


def test_the_condition_is_the_mean_state_and_the_last():
    states = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    expected = np.concatenate([states.mean(1), states[:, 4]], axis=1)
    np.testing.assert_allclose(recipe_rdm.condition(states), expected, atol=1e-6)


def test_it_fits_one_width_of_text_states():
    recipe_rdm.check_told(6, 3)
    with pytest.raises(UserError, match="is told 5 values, but text states of 3 make 6"):
        recipe_rdm.check_told(5, 3)
