import pytest

from seriatim.algo import recipes
from seriatim.algo.recipes import Plan, Recipe
from seriatim.errors import ConfigError

pytestmark = pytest.mark.unit

TEXT = """
net = "digits"
dataset = "digits"
[[stages]]
sizes = [[8, 2], [16, 1]]
rate = 0.01
tau = [0.1, 0.02]
"""


def test_every_packaged_recipe_is_read_and_starts_at_a_float_one():
    found = {plan.name: plan for plan in recipes.packaged()}
    assert {"cifar10-resnet20-float", "cifar10-resnet20-slb"} <= found.keys() and set(recipes.DEFAULTS.values()) <= found.keys()
    for plan in found.values():
        assert plan.description and plan.name.endswith("-slb") == plan.quantised
        if plan.start:
            start = found[plan.start]
            assert not start.quantised and start.net == plan.net and start.dataset == plan.dataset
    both = [found[f"cifar10-resnet20-{kind}"].stages[0] for kind in ("continued", "slb")]
    assert both[0].epochs == both[1].epochs == 60 and both[0].batch == both[1].batch and both[0].shift == both[1].shift


def test_a_file_becomes_stages(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    plan = recipes.load(path)
    assert plan == Plan("mine", "digits", "digits", (Recipe(((8, 2), (16, 1)), rate=0.01, tau=(0.1, 0.02)),))
    assert plan.size == 16 and [plan.stages[0].size_of(e) for e in range(3)] == [8, 8, 16]
    assert plan.changed(epochs=5, seed=4).stages == (Recipe(((16, 5),), rate=0.01, tau=(0.1, 0.02), seed=4),)
    assert plan.changed(image=32).stages[0].sizes == ((8, 2), (32, 1))


@pytest.mark.parametrize("old, new, words", [
    ("rate = 0.01", "learning_rate = 0.01", "unknown field learning_rate in a stage: there are sizes, batch, rate"),
    ('dataset = "digits"', 'data = "digits"', "unknown field data: there are"),
    ('net = "digits"\n', "", "net.*a recipe is a TOML file"),
    ("sizes = [[8, 2], [16, 1]]", "", "sizes"),
    ("sizes = [[8, 2], [16, 1]]", "sizes = [[8, 0]]", "0 epochs"),
    ("sizes = [[8, 2], [16, 1]]", "sizes = 8", "not iterable"),
    ("[[stages]]", "[stages]", "a recipe is a TOML file"),
    ("rate = 0.01", "rate = -1", "rate -1"),
    ("rate = 0.01", 'optimizer = "rmsprop"', "'rmsprop': choose sgd or adam"),
    ("rate = 0.01", 'schedule = "steps"', "'steps': choose one-cycle"),
    ("rate = 0.01", 'schedule = "constant"', "never decays"),
    ("tau = [0.1, 0.02]", "tau = [0.02, 0.1]", "swap them"),
    ("tau = [0.1, 0.02]", 'tau_schedule = "often"', "'often': choose rate"),
    ("rate = 0.01", "rate = = 1", "mine.toml.*line"),
])  # fmt: skip
def test_faults_name_the_field_and_the_rule(tmp_path, old, new, words):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ConfigError, match=words) as error:
        recipes.load(path)
    assert "mine.toml" in str(error.value)


def test_unknown_recipes_say_where_to_look():
    with pytest.raises(ConfigError, match="'cifar'.*--list-recipes"):
        recipes.load("cifar")
    with pytest.raises(ConfigError, match="net vgg.*--recipe"):
        recipes.default("vgg")
